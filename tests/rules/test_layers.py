"""Which module may import which: preprocess -> shards <- bmpt, downwards within a package, without
cycles, and no heavy library at the import of a light module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.rules.sources import (
    PACKAGES,
    ROOT,
    Import,
    imports_of,
    module_name,
    own_part,
    relative,
    source_files,
    tree_of,
)


def imports_into(package: str, *targets: str) -> list[tuple[str, Import]]:
    """Return (file, import) of every import of one of the targets in a package."""
    return [
        (relative(path), found)
        for path in source_files(package)
        for found in imports_of(path)
        if own_part(found.module) in targets
    ]


def test_the_walk_finds_imports_of_all_packages() -> None:
    assert all(len(source_files(package)) > 5 for package in PACKAGES)
    assert imports_into("bmpt", "shards"), "the walk finds imports"
    assert any(not found.is_at_top for _, found in imports_into("shards", "torch")), (
        "those inside functions too"
    )


def test_shards_imports_no_other_package() -> None:
    assert imports_into("shards", "preprocess", "bmpt", "tests") == []


def test_preprocess_imports_only_shards() -> None:
    assert imports_into("preprocess", "bmpt", "tests") == []


def test_bmpt_imports_preprocess_only_inside_functions_of_its_commands() -> None:
    found = imports_into("bmpt", "preprocess", "tests")
    assert {str(Path(file).parent) for file, _ in found} == {"bmpt/cli"}
    assert [entry for _, entry in found if entry.is_at_top] == []


def test_preprocess_never_imports_a_model_library() -> None:
    assert imports_into("preprocess", "torch", "torchvision", "open_clip", "safetensors") == []


PEERS = "bmpt/bench/loader.py"  # compares our loader with those of other projects


def test_bmpt_never_opens_a_raw_video_to_train() -> None:
    found = imports_into("bmpt", "av", "decord", "ffmpeg", "imageio_ffmpeg")
    assert {file for file, _ in found} <= {"bmpt/demo/videos.py", PEERS}


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    """Imports inside functions count, too."""
    modules = {module_name(path): path for path in source_files(*PACKAGES)}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for found in imports_of(path):
            target = found.module if found.module in modules else found.module.rpartition(".")[0]
            if target in modules and target != name:
                graph[name].add(target)
    assert sum(len(targets) for targets in graph.values()) > 50
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a cycle: {' -> '.join(reversed(error.args[1]))}")


# The folders and modules of each package from the lowest floor to the highest. Each may import
# lower floors only: none of its own floor, and not from inside a function either.
FLOORS: dict[str, list[tuple[str, ...]]] = {
    "shards": [
        ("errors",),
        ("files", "cli"),
        ("config", "config_names", "plugins", "progress"),
        ("format",),
        ("storage", "sampling"),
        ("reader",),
        ("fetching", "maintenance", "interop"),
        ("stream",),
        ("loader",),
    ],
    "preprocess": [
        ("settings", "planning", "sources"),
        ("decode", "protocols"),
        ("records",),
        ("workers",),
        ("coordinator",),
        ("console", "bench"),
        ("build_shards",),
    ],
    "bmpt": [
        ("settings", "clip", "augment"),
        ("texts",),
        ("methods",),
        ("config",),
        ("runtime", "config_keys", "experiments", "info", "data_plan"),
        ("checkpoints", "offline", "resolved_config"),
        ("sample_features",),
        ("task_checks",),
        ("task",),
        ("engine", "evaluation"),
        ("run", "bench"),
        ("demo",),
        ("cli",),
        ("__main__",),
    ],
}

MAX_MODULES_PER_FOLDER = 15


def upward_imports(package: str) -> set[tuple[str, str]]:
    """Return (file, imported module) of every import that does not lead to a lower floor."""
    floor_of = {entry: floor for floor, entries in enumerate(FLOORS[package]) for entry in entries}
    upward = set()

    for path in source_files(package):
        importer = module_name(path).split(".")[1:2]
        for found in imports_of(path):
            root, *inner = found.module.split(".")
            if root != package or not inner or inner[:1] == importer:
                continue
            # The package's own `__init__` holds no code, so it is below all floors.
            if not importer or floor_of[inner[0]] >= floor_of[importer[0]]:
                imported = found.module if is_module(found.module) else parent_of(found.module)
                upward.add((relative(path), imported))

    return upward


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module or package of ours, not a name defined in one."""
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def parent_of(module: str) -> str:
    """Return the dotted name without its last part."""
    return module.rpartition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_and_module_has_one_floor(package: str) -> None:
    entries = [entry for floor in FLOORS[package] for entry in floor]
    present = {
        path.stem
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }

    assert len(entries) == len(set(entries))
    assert set(entries) == present - {"__init__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_lead_to_lower_floors_only(package: str) -> None:
    assert upward_imports(package) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_holds_more_than_15_modules(package: str) -> None:
    folders = Counter(path.parent for path in source_files(package) if path.stem != "__init__")
    crowded = {
        relative(folder): number
        for folder, number in folders.items()
        if number > MAX_MODULES_PER_FOLDER
    }

    assert folders
    assert crowded == {}


# For other libraries: our addresses and columns. Only their users need it.
INTEROP = "shards/interop.py"


def test_webdataset_is_imported_only_inside_functions_of_three_modules() -> None:
    found = [
        (file, entry)
        for package in PACKAGES
        for file, entry in imports_into(package, "webdataset", "wids")
    ]
    assert {file for file, _ in found} == {
        "shards/format/writer.py",
        "shards/stream/pipeline.py",
        INTEROP,
        PEERS,
    }
    assert [file for file, entry in found if entry.is_at_top] == []


def test_hugging_face_datasets_is_imported_only_inside_a_function_of_interop() -> None:
    found = [
        (file, entry) for package in PACKAGES for file, entry in imports_into(package, "datasets")
    ]
    assert {file for file, _ in found} == {INTEROP}
    assert [file for file, entry in found if entry.is_at_top] == []


def test_torch_is_imported_only_inside_functions_of_shards() -> None:
    assert [file for file, entry in imports_into("shards", "torch") if entry.is_at_top] == []


@pytest.mark.parametrize("library", ["simplejpeg", "turbojpeg", "PIL", "cv2", "imageio"])
def test_only_one_file_names_a_jpeg_library(library: str) -> None:
    named = {file for package in PACKAGES for file, _ in imports_into(package, library)}
    assert named <= {"shards/format/jpeg.py", PEERS}
    assert PEERS not in named or library == "PIL"
    if library == "simplejpeg":
        assert named == {"shards/format/jpeg.py"}


def test_torchvision_is_imported_only_inside_functions() -> None:
    found = [
        (file, entry.line)
        for package in PACKAGES
        for file, entry in imports_into(package, "torchvision", "open_clip")
    ]
    tops = [
        (file, entry)
        for file, entry in imports_into("bmpt", "torchvision", "open_clip")
        if entry.is_at_top
    ]
    assert found
    assert tops == []


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return set(done.stdout.split())


HEAVY = {"torch", "webdataset", "torchvision", "open_clip"}


def test_importing_all_of_shards_loads_neither_torch_nor_webdataset() -> None:
    modules = [module_name(path) for path in source_files("shards")]
    loaded = modules_after("; ".join(f"import {module}" for module in modules))
    assert {"shards", "numpy", "pyarrow"} <= loaded
    assert loaded & HEAVY == set()


def test_importing_all_of_preprocess_loads_neither_torch_nor_webdataset() -> None:
    modules = [module_name(path) for path in source_files("preprocess")]
    loaded = modules_after("; ".join(f"import {module}" for module in modules))
    assert {"preprocess", "shards"} <= loaded
    assert loaded & HEAVY == set()


def test_importing_the_packages_loads_no_library() -> None:
    loaded = modules_after("import shards, preprocess, bmpt")
    assert loaded & (HEAVY | {"numpy", "pyarrow", "pydantic", "av"}) == set()


def test_no_file_of_preprocess_is_named_like_a_standard_module() -> None:
    """A script that is run by its path has `preprocess/` first on sys.path."""
    names = {
        path.stem
        for path in (ROOT / "preprocess").iterdir()
        if path.suffix == ".py" or path.is_dir()
    }
    assert names & set(sys.stdlib_module_names) == set()


def test_no_file_of_preprocess_is_named_like_a_library_it_uses() -> None:
    names = {
        path.stem
        for path in (ROOT / "preprocess").iterdir()
        if path.suffix == ".py" or path.is_dir()
    }
    used = {
        own_part(found.module) for path in source_files(*PACKAGES) for found in imports_of(path)
    }
    assert names & (used - set(PACKAGES)) == set()


def public_definitions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Return the public functions and classes at the top of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node
        for node in tree_of(path).body
        if isinstance(node, kinds) and not node.name.startswith("_")
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_and_class_has_a_docstring(package: str) -> None:
    found = [(path, node) for path in source_files(package) for node in public_definitions(path)]
    assert len(found) > 20
    bare = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path, node in found
        if not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_docstring(package: str) -> None:
    bare = [
        relative(path)
        for path in source_files(package)
        if path.name != "__init__.py" and not ast.get_docstring(tree_of(path))
    ]
    assert bare == []


def test_nothing_but_the_sample_boundary_catches_every_exception() -> None:
    """`except Exception` must re-raise, or be where a sample's errors are counted (in
    preprocess's workers)."""
    wide = []
    for path in source_files(*PACKAGES):
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            catches = "" if node.type is None else ast.unparse(node.type)
            is_wide = node.type is None or catches in ("Exception", "BaseException")
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if is_wide and not reraises and own_part(module_name(path)) != "preprocess":
                wide.append(f"{relative(path)}:{node.lineno}")
    assert wide == []
