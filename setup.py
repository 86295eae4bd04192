"""Build ``oslo_fastmsg._core``; all metadata is in ``pyproject.toml``.

Environment variables that the build reads:

* ``FM_WERROR=1``: compiler warnings are errors (the project's own CI);
* ``FM_SANITIZE=address``: AddressSanitizer and UBSan, assertions on;
* ``PKG_CONFIG``, ``CC``, ``CFLAGS``, ``LDFLAGS``: as everywhere.
"""

import concurrent.futures
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
]
# CPython's own macros convert too freely for this one.
CORE_WARNINGS = ["-Wconversion"]

# pkg-config module, the oldest version that will do, Debian, RPM
LIBRARIES = [
    ("librabbitmq", "0.10", "librabbitmq-dev", "librabbitmq-devel"),
    ("libssl", "3.0", "libssl-dev", "openssl-devel"),
    ("libcrypto", "3.0", "libssl-dev", "openssl-devel"),
]
# Of msgpack-c only headers are used, and none of it is linked. Distributions call its
# module one or the other.
MSGPACK = ["msgpack", "msgpack-c"]
MSGPACK_OLDEST = "3.0"


def pkg_config(*arguments):
    """Run pkg-config; None if it fails or is not there."""
    command = shlex.split(os.environ.get("PKG_CONFIG", "pkg-config"))
    try:
        return subprocess.run(
            [*command, *arguments],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def msgpack_module():
    """Tell what msgpack-c is called here; None if it is missing or too old."""
    for module in MSGPACK:
        if pkg_config(f"--atleast-version={MSGPACK_OLDEST}", module) is not None:
            return module
    return None


def version():
    """Read the version where pyproject.toml says it is, without importing."""
    with open("oslo_fastmsg/__init__.py", encoding="utf-8") as text:
        return re.search(r'__version__ = "([^"]+)"', text.read())[1]


def missing():
    """Tell what this machine lacks: (what, Debian package, RPM package)."""
    compiler = shlex.split(
        os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    )
    if shutil.which(compiler[0]) is None:
        yield f"a C compiler ({compiler[0]})", "gcc", "gcc"
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        yield "Python.h", "python3-dev", "python3-devel"
    if pkg_config("--version") is None:
        yield "pkg-config", "pkg-config", "pkgconf-pkg-config"
        return
    for module, version, debian, rpm in LIBRARIES:
        if pkg_config(f"--atleast-version={version}", module) is None:
            yield f"{module} >= {version}", debian, rpm
    if msgpack_module() is None:
        what = f"{' or '.join(MSGPACK)} >= {MSGPACK_OLDEST}"
        yield what, "libmsgpack-dev", "msgpack-devel"


class BuildCore(build_ext):
    """Check what is installed, then compile what changed, two at a time."""

    def run(self):
        lacking = list(missing())
        if lacking:
            what = ", ".join(dict.fromkeys(item[0] for item in lacking))
            debian = " ".join(dict.fromkeys(item[1] for item in lacking))
            rpm = " ".join(dict.fromkeys(item[2] for item in lacking))
            sys.exit(
                f"oslo-fastmsg: cannot build without {what}: "
                f"apt install {debian} (Debian), dnf install {rpm} (RPM)"
            )
        super().run()

    def build_extension(self, ext):
        names = [module for module, *_ in LIBRARIES]
        ext.extra_compile_args += shlex.split(
            pkg_config("--cflags", *names, msgpack_module())
        )
        ext.extra_link_args += shlex.split(pkg_config("--libs", *names))
        sanitize = os.environ.get("FM_SANITIZE", "")
        if sanitize:
            sanitizers = f"-fsanitize={sanitize},undefined"
            ext.extra_compile_args += [sanitizers, "-fno-sanitize-recover=undefined"]
            ext.extra_compile_args += ["-fno-omit-frame-pointer", "-O1", "-UNDEBUG"]
            ext.extra_link_args += [sanitizers]
        # Also for an editable install, which would compile everything in a
        # temporary folder, only to have it done once more in place.
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        kind = sanitize
        if os.environ.get("FM_WERROR"):
            ext.extra_compile_args += ["-Werror"]
            # Objects that were let pass with warnings are not to be used again.
            kind += "-werror"
        self.build_temp = os.path.join("build", f"objects{suffix}-{kind}")

        compile_sources = self.compiler.compile
        not_before = max(map(os.path.getmtime, [*ext.depends, __file__]))

        def compile_one(source, arguments):
            extra = arguments["extra_postargs"]
            if not source.startswith("csrc/py/"):
                extra = [*extra, *CORE_WARNINGS]
            (target,) = self.compiler.object_filenames([source], 0, self.build_temp)
            if not self.force and os.path.exists(target):
                made = os.path.getmtime(target)
                if made > not_before and made > os.path.getmtime(source):
                    return [target]
            return compile_sources([source], **{**arguments, "extra_postargs": extra})

        def compile_all(sources, **arguments):
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compile_one, s, arguments) for s in sources]
                return [job.result()[0] for job in jobs]

        self.compiler.compile = compile_all
        super().build_extension(ext)


setup(
    # Here because setuptools before 77 and from 77 on disagree about how
    # pyproject.toml spells it.
    license="Apache-2.0",
    cmdclass={"build_ext": BuildCore},
    ext_modules=[
        Extension(
            "oslo_fastmsg._core",
            sources=sorted(glob.glob("csrc/*/*.c")),
            depends=sorted(glob.glob("csrc/*/*.h")),
            include_dirs=["csrc"],
            define_macros=[("_GNU_SOURCE", None), ("FM_VERSION", f'"{version()}"')],
            extra_compile_args=[
                "-std=c11",
                "-fvisibility=hidden",
                "-pthread",
                *WARNINGS,
            ],
            extra_link_args=["-pthread"],
        )
    ],
)
