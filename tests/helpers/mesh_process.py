"""Programs that need several devices, in a process of their own: the number of CPU devices is set before JAX starts."""

import json
import os
import subprocess
import sys


def result_on_devices(number, program):
    """What a program prints, as JSON, behind the word RESULT, on so many devices of the CPU."""
    flags = f"--xla_force_host_platform_device_count={number}"
    here = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": flags}
    environment = {**os.environ, **here, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as `conftest` has it
    run = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, run.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT"))
