"""An optimized HLO module, read from its text: what a compiler says that it will run."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

# Of dtypes whose names do not say it (`xla/primitive_util.cc`).
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HOST = "S(5)"  # `xla/layout.h`, as `xla/service/host_memory_offload_annotations.h` numbers the host's memory
_VECTOR = re.compile(r"T\(.*S\(1\)")  # a TPU's, where arrays lie in tiles; elsewhere 1 is main memory
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_OPERATION = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_INLINE_SOURCE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """The dtype, as HLO writes it, and the dimensions of one array; whether it lies in the host's memory, or in a TPU's
    vector memory."""

    dtype: str
    dims: tuple[int, ...]
    on_host: bool = False
    in_vector_memory: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        return -(-self.elements * dtype_bits(self.dtype) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name, opcode: as in the text.
      arrays: what it makes, tuples flattened.
      operands: names of the instructions that it reads.
      called: names of the computations that it runs: a fusion's, a loop's body, a conditional's branches.
      line: the whole text, for attributes.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    line: str

    @property
    def size_bytes(self) -> int:
        """Of all that lies outside of a TPU's vector memory."""
        return sum(array.size_bytes for array in self.arrays if not array.in_vector_memory)

    @property
    def operation(self) -> str:
        """The JAX operation that it comes from, with its name stack; empty where none is given."""
        found = _OPERATION.search(self.line)
        return found[1] if found else ""

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The integers of a list-valued attribute, such as `lhs_contracting_dims={1}`; empty where there is none."""
        found = re.search(attribute + r'"?[=:][\[{]([\d",\s]*)[\]}]', self.line)
        return tuple(map(int, re.findall(r"\d+", found[1]))) if found else ()

    def word(self, attribute: str) -> str:
        """The value of an attribute that is one word, such as `dim_labels=b01f_01io->b01f`."""
        found = re.search(attribute + r"=([^\s,}]+)", self.line)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True, eq=False)
class HloModule:
    """A module.

    Attributes:
      computations: the instructions of each computation, in order.
      entry: name of the computation that runs.
      sources: "file.py:line" of each stack frame; modules that write sources beside each instruction have none.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    sources: dict[int, str]

    def trip_count(self, loop: Instruction) -> int:
        """How often a loop's body runs: as the compiler says, or what it counts up to, from zero as scans do; 1 where
        neither is known."""
        if known := _TRIPS.search(loop.line):
            return int(known[1])
        condition = self.computations.get(loop.word("condition").lstrip("%"), ())
        if not condition or condition[-1].word("direction") != "LT":
            return 1
        limits = [_CONSTANT.search(each.line) for each in condition if each.name == condition[-1].operands[1]]
        return int(limits[0][1]) if limits and limits[0] else 1

    def source(self, instruction: Instruction) -> str:
        """The line of Python that an instruction comes from, or empty."""
        inline = _INLINE_SOURCE.search(instruction.line)
        if inline:
            return f"{inline[1].rpartition('/')[2]}:{inline[2]}"
        frame = _FRAME.search(instruction.line)
        return self.sources.get(int(frame[1]), "") if frame else ""


def parse_hlo(text: str) -> HloModule:
    """Reads the text of a module, as `compiled.as_text()` returns it."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(found[2], found[3]))
    return HloModule({name: tuple(body) for name, body in computations.items()}, entry, _sources(text))


@functools.cache
def dtype_bits(dtype: str) -> int:
    """Bits of one element: `bf16` has 16, `f8e4m3fn` has 8, `pred` takes a byte."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 0


def _instruction(name: str, rest: str) -> Instruction:
    opcode = _OPCODE.search(" " + rest if rest[:1].isalpha() else rest)
    assert opcode, rest  # every instruction has one
    shape = rest[: rest.index(opcode[0].strip())]
    inside = _balanced(rest[len(shape) :])
    branches = _BRANCHES.search(rest)
    called = _CALLED.findall(rest) + (_NAME.findall(branches[1]) if branches else [])
    return Instruction(
        name=name,
        opcode=opcode[1],
        arrays=tuple(
            Array(dtype, tuple(map(int, filter(None, dims.split(",")))), _HOST in layout, bool(_VECTOR.search(layout)))
            for dtype, dims, layout in _ARRAY.findall(shape)
        ),
        operands=tuple(_NAME.findall(inside)) if opcode[1] != "parameter" else (),
        called=tuple(called),
        line=rest,
    )


def _balanced(text: str) -> str:
    """What stands between the first parenthesis and its partner."""
    depth, first = 0, text.index("(")
    for position in range(first, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return text[first + 1 : position]
    return text[first + 1 :]


def _sources(text: str) -> dict[int, str]:
    """The innermost line of each stack frame."""
    files = {
        n: name.rpartition("/")[2] for n, name in re.findall(r'^(\d+) "([^"]*)"$', _table(text, "FileNames"), re.M)
    }
    places = dict(
        (number, f"{files.get(file, '')}:{line}")
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", _table(text, "FileLocations"), re.M
        )
    )
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _table(text, "StackFrames"), re.M)
    return {int(frame): places.get(place, "") for frame, place in frames}


def _table(text: str, title: str) -> str:
    """The lines of one of the tables at a module's head."""
    start = text.find(f"\n{title}\n")
    return text[start : text.find("\n\n", start + 1)] if start >= 0 else ""
