"""Classes that a config names, so that what a run uses stands in its config and the library imports nobody's code."""

import importlib
from typing import Any

from vlaa_jax.errors import InputError


def make_named(name: str, what: str) -> Any:
    """An object of the class `package.module:ClassName`, which takes no arguments.

    Args:
      name: of the class.
      what: it is, for the message.

    Raises:
      InputError: there is no such class.
    """
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise InputError(f"{what} {name!r} is not of the form package.module:ClassName")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{what} {name!r}: cannot import {module_name} ({error})") from None
    if not hasattr(module, class_name):
        raise InputError(f"{what} {name!r}: module {module_name} has no {class_name}")
    return getattr(module, class_name)()
