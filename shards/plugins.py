"""Extensions of other packages, found by entry points.

A package that adds a method or a data set names it in its metadata, for example in
`[project.entry-points."bmpt.methods"]` of its pyproject.toml. Finding extensions reads metadata
only; a package is imported when one of its extensions is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from shards.errors import ConfigError
from shards.files import one_line


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed package."""

    package: str
    """Name of the distribution that registers it."""

    entry: EntryPoint

    @property
    def value(self) -> str:
        """Return the object that the entry point names, as `package.module:attribute`."""
        return self.entry.value


def find_plugins(group: str) -> dict[str, list[Plugin]]:
    """Return the entry points of a group by name; a name should have one."""
    found: dict[str, list[Plugin]] = {}
    for entry in entry_points(group=group):
        package = entry.dist.name if entry.dist is not None else "?"
        plugins = found.setdefault(entry.name, [])
        # a package that is on sys.path twice is one package
        if (package, entry.value) not in [(plugin.package, plugin.value) for plugin in plugins]:
            plugins.append(Plugin(package, entry))
    return found


def load_plugin(where: str, plugins: Sequence[Plugin]) -> Any:
    """Import the object that the entry point of one name stands for.

    Args:
        where: The setting that asks for it, as error messages name it.
        plugins: The entry points of the name, at least one.

    Raises:
        ConfigError: Several packages claim the name, or the import fails.
    """
    first = plugins[0]
    if len(plugins) > 1:
        packages = " and ".join(plugin.package for plugin in plugins)
        raise ConfigError(f"{where}: packages {packages} both register it; uninstall one of them")
    try:
        return first.entry.load()
    except (Exception, SystemExit) as error:  # a package can fail in any way at its import
        raise ConfigError(
            f"{where}: {first.value} of package {first.package} cannot be imported: "
            f"{type(error).__name__}: {one_line(error)}; repair or uninstall the package"
        ) from error
