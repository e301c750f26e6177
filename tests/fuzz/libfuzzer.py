"""python -m tests.fuzz.libfuzzer TARGET …: run a target under libFuzzer, with its arguments."""

import sys

import atheris

with atheris.instrument_imports(include=["app", "model", "PIL", "python_multipart"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    _, target, *arguments = sys.argv
    # To merge, libFuzzer starts itself again through a shell.
    program = f"{sys.executable} -m tests.fuzz.libfuzzer {target}"
    atheris.Setup([program, *arguments], TARGETS[target])
    atheris.Fuzz()
