"""Compiles the stand-ins for the PyTorch that a program uses, once, into the user's cache."""

import hashlib
import json
import mmap
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from fitplan.errors import RehearsalImpossible
from fitplan.process import kept
from fitplan.whole import scratch_folder

SOURCES = Path(__file__).parent / "stand_ins"
_PRELOADED = ("memory", "cudart", "cublas", "cudnn", "nccl", "nvrtc")
"""What is loaded before everything else, in one library."""
_OPENED = {"driver": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}
"""What programs open by name."""
_NAMES = re.compile(r"(cuda|__cuda|cublas|nccl|nvrtc|cudnn)[A-Z]\w*")
_STOOD_IN_FOR = ("libcudart.so*", "libcublas.so*", "libcublasLt.so*", "libnccl.so*", "libnvrtc.so*", "libcudnn*.so*")
_CALLERS = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libcaffe2_nvrtc.so")
_DRIVER_NAMES = re.compile(rb"\0(cu[A-Z][A-Za-z0-9]{4,}(?:_v\d)?)\0")
_NVML_NAMES = re.compile(rb"\0(nvml[A-Z][A-Za-z0-9]+(?:_v\d)?)\0")
_NVML_IN_PYTHON = re.compile(r"[\"'](nvml[A-Z]\w+)[\"']")
_HEADERS = ("triton/backends/nvidia/include/cuda.h", "nvidia/*/include/cuda.h")
_IN_HEADER = re.compile(r"\b(cu[A-Z]\w+)\b(?=\s*\(|\s*$)", re.MULTILINE)
_OTHER_LIBRARIES = re.compile(r"cu(File|fft|rand|sparse|solver|blas|dnn|pti|Tensor(?!Map))")

COMPILE_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Torch:
    """A PyTorch that is installed for some interpreter.

    Attributes:
        folder: of the package.
        version: as in ``"2.14.1+cu130"``.
        cuda: the CUDA version that it was built for, as in ``"13.0"``; ``None`` for a build without.
        packages: versions of the packages beside it, by the name of their distribution.

    """

    folder: Path
    version: str
    cuda: str | None
    packages: dict[str, str]

    def number(self, package: str, widths: tuple[int, int, int], otherwise: int) -> int:
        """The version of an NVIDIA library as that library tells it: major, minor and patch in one number."""
        for name, version in self.packages.items():
            if re.fullmatch(rf"nvidia_{package}(_cu\d+)?", name):
                return sum(int(part) * width for part, width in zip(version.split("."), widths, strict=False))
        return otherwise


_ASK = """
import importlib.util, json, os, sys
spec = importlib.util.find_spec("torch")
found = {"folder": None, "path": [p for p in sys.path if p]}
if spec and spec.origin:
    found["folder"] = os.path.dirname(spec.origin)
print(json.dumps(found))
"""


def torch_of(python: str) -> Torch:
    """The PyTorch of an interpreter, found without importing it.

    Raises:
        RehearsalImpossible: there is none, or it is built without CUDA.

    """
    try:
        asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True, env=kept())
        found = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RehearsalImpossible(f"{python} cannot be asked for its PyTorch: {error}") from error
    if found["folder"] is None:
        raise RehearsalImpossible(f"{python} has no PyTorch; a rehearsal needs a CUDA build of it: pip install torch")
    folder = Path(found["folder"])
    told = (folder / "version.py").read_text(encoding="utf-8")
    version = _said(told, "__version__") or "unknown"
    cuda = _said(told, "cuda")
    if cuda is None:
        raise RehearsalImpossible(
            f"the PyTorch of {python} is {version}, built without CUDA; a rehearsal runs on a CUDA build "
            "(pip install torch, on Linux, takes one); no GPU is needed for it"
        )
    return Torch(folder=folder, version=version, cuda=cuda, packages=_packages(folder.parent))


def _said(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}(?::[^=]*)?\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _packages(site: Path) -> dict[str, str]:
    names = (path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    return {name: version for name, _, version in (one.partition("-") for one in names)}


@dataclass(frozen=True)
class StandIns:
    """Compiled stand-ins.

    Attributes:
        folder: where they lie.

    """

    folder: Path

    @property
    def preloaded(self) -> Path:
        """The library that is loaded before all others."""
        return self.folder / "libfitplan-rehearsal.so"

    @property
    def opened(self) -> Path:
        """The folder of the libraries that are opened by name."""
        return self.folder / "opened"

    @property
    def are_there(self) -> bool:
        """Whether all of them are."""
        return all(path.is_file() for path in (self.preloaded, *(self.opened / name for name in _OPENED.values())))


def stand_ins_for(torch: Torch) -> StandIns:
    """The stand-ins for this PyTorch, compiled if they are not in the cache.

    Raises:
        RehearsalImpossible: this is no Linux on x86-64, or nothing here compiles C.

    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise RehearsalImpossible(
            f"a rehearsal runs on Linux on x86-64, and this is {sys.platform} on {platform.machine()}; "
            "fitplan check answers anywhere"
        )
    made = StandIns(platformdirs.user_cache_path("fitplan", appauthor=False) / "rehearsal" / _key(torch))
    if made.folder.exists() and not made.are_there:  # moved into place as a whole, then damaged
        shutil.rmtree(made.folder, ignore_errors=True)
    if not made.are_there:
        _compile(torch, made.folder)
    return made


def _key(torch: Torch) -> str:
    """A digest of all that they are made from."""
    digest = hashlib.sha256(f"{torch.version} {torch.cuda} {torch.folder}\n".encode())
    digest.update(json.dumps({n: v for n, v in sorted(torch.packages.items()) if n.startswith("nvidia")}).encode())
    for source in sorted((*SOURCES.iterdir(), Path(__file__))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _compile(torch: Torch, folder: Path) -> None:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or shutil.which("nm") is None:
        raise RehearsalImpossible("a rehearsal compiles a few files of C first; install a compiler (apt install gcc)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent) as draft:
        here = draft / "made"
        here.mkdir()
        for name in (*_PRELOADED, *_OPENED):
            _run(compiler, "-O1", "-fPIC", "-w", "-c", str(SOURCES / f"{name}.c"), "-o", f"{here}/{name}.o")
        preloaded = [f"{here}/{name}.o" for name in _PRELOADED]
        rest = _without_rule(_names_of(torch), preloaded)
        _add(compiler, here, "rest", _versions(torch) + rest)
        (here / "opened").mkdir()
        _run(
            compiler,
            "-shared",
            "-o",
            f"{here}/libfitplan-rehearsal.so",
            *preloaded,
            f"{here}/rest.o",
            "-lpthread",
            "-ldl",
        )
        _add(compiler, here, "driver-rest", _without_rule(_driver_names(torch), [f"{here}/driver.o"]))
        _add(compiler, here, "nvml-rest", _without_rule(_nvml_names(torch), [f"{here}/nvml.o"], NOT_SUPPORTED))
        for name, library in _OPENED.items():
            objects = [f"{here}/{name}.o", f"{here}/{name}-rest.o"]
            _run(compiler, "-shared", f"-Wl,-soname,{library}", "-o", f"{here}/opened/{library}", *objects)
        with suppress(OSError):  # another process was faster
            here.rename(folder)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=True, env=kept())
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "it said nothing").splitlines()[-1]
        raise RehearsalImpossible(f"the stand-ins cannot be compiled: {Path(command[0]).name}: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RehearsalImpossible(f"the stand-ins cannot be compiled: {error}") from error
    return done.stdout


def _add(compiler: str, folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.c").write_text(source, encoding="utf-8")
    _run(compiler, "-O1", "-fPIC", "-w", "-c", f"{folder}/{name}.c", "-o", f"{folder}/{name}.o")


def _versions(torch: Torch) -> str:
    """What the libraries say of themselves, as the installed ones do."""
    major, minor = (int(part) for part in (torch.cuda or "12.0").split(".")[:2])
    cuda = 1000 * major + 10 * minor
    numbers = {
        "cuda": cuda,
        "cublas": torch.number("cublas", (10000, 100, 1), 10 * cuda),
        "cudnn": torch.number("cudnn", (10000, 100, 1), 90100),
        "nccl": torch.number("nccl", (10000, 100, 1), 22100),
    }
    return "".join(f"int fitplan_{name}_version = {number};\n" for name, number in numbers.items())


_TOLD = """
void fitplan_told_once(const char *);
#define TELL(name) static char told; if (!told) { told = 1; fitplan_told_once(#name); }
#define WITHOUT_RULE(name) long name(void) { TELL(name) return ANSWER; }
"""
NOT_SUPPORTED = 3
"""``NVML_ERROR_NOT_SUPPORTED``: of NVML nobody needs an answer."""


def _without_rule(names: Iterable[str], objects: list[str], answer: int = 0) -> str:
    """C that answers success (0) for each name that no object file defines, and tells of it once."""
    defined = {line.split()[-1] for line in _run("nm", "--defined-only", *objects).splitlines() if " T " in line}
    stubs = "".join(f"WITHOUT_RULE({name})\n" for name in sorted(set(names) - defined))
    return f"#define ANSWER {answer}{_TOLD}{stubs}"


def _names_of(torch: Torch) -> Iterator[str]:
    """Every function that the real libraries have, as far as they lie here, and that PyTorch asks for."""
    site = torch.folder.parent
    real = [str(path) for pattern in _STOOD_IN_FOR for path in site.glob(f"nvidia/**/{pattern}") if path.is_file()]
    callers = [str(torch.folder / "lib" / name) for name in _CALLERS if (torch.folder / "lib" / name).exists()]
    for what, libraries in (("--defined-only", real), ("--undefined-only", callers)):
        listed = _run("nm", "-D", what, *libraries).splitlines() if libraries else []
        for line in listed:
            name = line.rpartition(" ")[2].partition("@")[0]
            if _NAMES.fullmatch(name):
                yield name


def _driver_names(torch: Torch) -> Iterator[str]:
    """Functions of the driver: those of a header that a package brings along, and those that PyTorch opens by name."""
    for pattern in _HEADERS:
        for header in torch.folder.parent.glob(pattern):
            yield from _IN_HEADER.findall(header.read_text(encoding="utf-8", errors="replace"))
    yield from (name for name in _texts(torch, _DRIVER_NAMES) if not _OTHER_LIBRARIES.match(name))


def _nvml_names(torch: Torch) -> Iterator[str]:
    """Functions of NVML that PyTorch and pynvml open by name."""
    for module in torch.folder.parent.glob("pynvml*.py"):
        yield from _NVML_IN_PYTHON.findall(module.read_text(encoding="utf-8", errors="replace"))
    yield from _texts(torch, _NVML_NAMES)


def _texts(torch: Torch, wanted: "re.Pattern[bytes]") -> Iterator[str]:
    """What stands as text in PyTorch's libraries."""
    for path in (torch.folder / "lib" / name for name in _CALLERS):
        if path.exists():
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield from (found[1].decode() for found in wanted.finditer(content))
