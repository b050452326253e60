"""Scripts as programs that can be run and compared."""

from jaxremat.base.compat import Jaxpr
from jaxremat.emit.scheduled import put_script
from jaxremat.emit.script import Script
from jaxremat.trace.joint import Joint
from jaxremat.trace.splice import Splice


def emitted_program(joint: Joint, script: Script) -> Jaxpr:
    """Forward and backward of a script as one program."""
    program = Splice(joint.jaxpr)
    return program.program(put_script(program, joint, script))
