"""Small source trees to build: generated, so that they need nothing from outside."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

__all__ = ["MODULES", "write_c_project", "write_python_project"]

MODULES: Final = 60
_SOURCES: Final = 20
_FUNCTIONS: Final = 25

_BACKEND: Final = '''
"""The least that PEP 517 asks of a build backend: packs `sample/` into a wheel."""

import base64
import hashlib
import os
import zipfile

NAME, TAG = "sample-1.0", "py3-none-any"
METADATA = "Metadata-Version: 2.1\\nName: sample\\nVersion: 1.0\\n"
WHEEL = f"Wheel-Version: 1.0\\nGenerator: sample\\nRoot-Is-Purelib: true\\nTag: {TAG}\\n"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    os.makedirs("build", exist_ok=True)
    files = {f"sample/{name}": open(f"sample/{name}", "rb").read() for name in sorted(os.listdir("sample"))}
    for name, content in files.items():
        with open(os.path.join("build", os.path.basename(name)), "wb") as copy:
            copy.write(content)
    files |= {f"{NAME}.dist-info/METADATA": METADATA.encode(), f"{NAME}.dist-info/WHEEL": WHEEL.encode()}
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\\n"
    files[f"{NAME}.dist-info/RECORD"] = (record + f"{NAME}.dist-info/RECORD,,\\n").encode()
    wheel = f"{NAME}-{TAG}.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel
'''
_PYPROJECT: Final = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
_MAKEFILE: Final = """\
OBJECTS := $(patsubst %.c,build/%.o,$(wildcard *.c))
build/sample: $(OBJECTS)
\tcc -o $@ $^
build/%.o: %.c sample.h
\t@mkdir -p build
\tcc -O1 -c -o $@ $<
"""


def write_python_project(folder: Path) -> None:
    """Write a package of `MODULES` modules with its own build backend."""
    package = folder / "sample"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT, "utf-8")
    (folder / "backend.py").write_text(_BACKEND, "utf-8")
    (package / "__init__.py").write_text("", "utf-8")
    body = "".join(
        textwrap.dedent(f'''
            def step_{i}(values: list[int]) -> list[int]:
                """Return every value moved by {i}."""
                return [value + {i} for value in values if value % {i + 2}]
        ''')
        for i in range(_FUNCTIONS)
    )
    for number in range(MODULES):
        (package / f"part_{number}.py").write_text(body, "utf-8")


def write_c_project(folder: Path) -> None:
    """Write 20 C files, a header and a makefile."""
    folder.mkdir(parents=True)
    (folder / "Makefile").write_text(_MAKEFILE, "utf-8")
    names = [f"part_{number}" for number in range(_SOURCES - 1)]
    (folder / "sample.h").write_text("".join(f"int {name}(int);\n" for name in names), "utf-8")
    head = '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include "sample.h"\n'
    for name in names:
        functions = "".join(
            f'static int f{i}(int x) {{ char b[64]; snprintf(b, sizeof b, "%d", x * {i}); return atoi(b); }}\n'
            for i in range(_FUNCTIONS)
        )
        calls = " + ".join(f"f{i}(x)" for i in range(_FUNCTIONS))
        (folder / f"{name}.c").write_text(f"{head}{functions}int {name}(int x) {{ return {calls}; }}\n", "utf-8")
    calls = " + ".join(f"{name}(argc)" for name in names)
    main = f'{head}int main(int argc, char **argv) {{ printf("%s %d\\n", argv[0], {calls}); return 0; }}\n'
    (folder / "main.c").write_text(main, "utf-8")
