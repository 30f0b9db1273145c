"""The data set of a config: one that we know by name, or the user's own."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from bpfree.data import Dataset, Examples, arrays, named, one_by_one
from bpfree.training import own
from bpfree.training.names import ConfigError, call, signature_of, unknown

LOADERS = ("device", "grain")


def load(section: Mapping[str, Any]) -> Dataset:
    """Of `config.data`; with loader="grain", its training part as `Examples`.

    Raises ConfigError.
    """
    rest = dict(section)
    name, loader = rest.pop("name"), rest.pop("loader", "device")
    if loader not in LOADERS:
        raise unknown("config.data.loader", loader, LOADERS)
    if own.is_own(name):
        found = call(own.find(name, "config.data"), rest, "config.data")
        data = call(arrays.dataset, {}, "config.data", {"found": found, "name": name})
    elif name.endswith(".npz"):
        data = call(arrays.load, rest, "config.data", {"path": name})
    elif name in named.LOADERS:
        make = named.LOADERS[name]
        given = {"name": name, "lazy": loader == "grain"}
        taken = given.keys() & signature_of(make).parameters
        data = call(make, rest, "config.data", {key: given[key] for key in taken})
    elif PurePath(name).suffix:
        raise ConfigError(
            f"config.data={name!r} is no set by name, and no .npz file; other files are "
            "read by a function of yours: './mine.py:load'"
        )
    else:
        raise unknown("config.data.name", name, named.LOADERS)
    if loader == "grain" and not isinstance(data.train, Examples):
        data = data._replace(train=one_by_one(data.train))
    return data
