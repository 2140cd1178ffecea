"""Types of pydantic are stored by pydantic itself, which is imported when one of them is met."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.culprit import kind_of, step
from kvreplay._typed.annotations import bare, is_typeddict
from kvreplay.errors import ConfigError

__all__ = ["Unstorable", "is_model", "is_of_pydantic", "is_secret", "model_codec", "unstorable_in"]

_PLAIN: Final = frozenset((str, int, float, bool, bytes, type(None)))


def is_of_pydantic(cls: object) -> bool:
    """Say whether pydantic stores a class: a model, its own dataclass, or one such as a URL."""
    return is_model(cls) or (isinstance(cls, type) and hasattr(cls, "__get_pydantic_core_schema__"))


def is_model(cls: object) -> bool:
    """Say whether a class is a model or a dataclass of pydantic."""
    return isinstance(cls, type) and "__pydantic_validator__" in dir(cls)


def is_secret(cls: object) -> bool:
    """Say whether it is a ``SecretStr``, a ``SecretBytes`` or a ``Secret[...]``."""
    cls = typing.get_origin(cls) or cls
    return isinstance(cls, type) and is_of_pydantic(cls) and hasattr(cls, "get_secret_value")


class Unstorable(TypeError):
    """Something in a model cannot be stored: the text says where, and what it is."""


def model_codec(annotation: Any, name: str, said: str) -> Codec[Any]:
    """Return how pydantic stores a type of its own. Encoding does not look whether all is kept.

    Raises:
        ConfigError: pydantic is not installed, too old, or cannot store the type.
    """
    adapter = _adapter_of(annotation, said)
    # What the class has no field for any more would be dropped in silence.
    forbid: Any = None if _allows_extra(annotation, set()) else "forbid"
    validate = adapter.validate_python

    def encode(value: object) -> object:
        dumped = adapter.dump_python(
            value, mode="python", round_trip=True, by_alias=False, warnings="error"
        )
        return _plain(dumped, "")

    def decode(data: object) -> Any:
        return validate(data, strict=False, extra=forbid, by_alias=False, by_name=True)

    return Codec(encode, decode, name)


def _adapter_of(annotation: Any, said: str) -> Any:
    try:
        import pydantic
    except ImportError:
        raise ConfigError(
            f"{said}: pydantic stores it, and cannot be imported: pip install 'pydantic>=2.12';"
            " nothing ran"
        ) from None
    if tuple(int(each) for each in pydantic.VERSION.split(".")[:2]) < (2, 12):
        raise ConfigError(
            f"{said}: pydantic 2.12 or later stores it, and {pydantic.VERSION} is installed:"
            " pip install 'pydantic>=2.12'; nothing ran"
        )
    try:
        adapter: Any = pydantic.TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)  # now, what a name in it means must be known
    except (pydantic.PydanticUserError, NameError, TypeError) as error:
        raise ConfigError(
            f"{said}: pydantic cannot store it ({type(error).__name__}): give encode= and decode=;"
            " nothing ran"
        ) from error
    return adapter


def _plain(value: Any, path: str) -> object:
    """Make what msgpack can hold of what pydantic has dumped: bytes stay bytes."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return {
            _plain(key, f"{path}[key {position}]"): _plain(each, path + step(key, position))
            for position, (key, each) in enumerate(value.items())
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each, f"{path}[{position}]") for position, each in enumerate(value)]
    if not is_secret(type(value)):
        from pydantic_core import PydanticSerializationError, to_jsonable_python

        try:
            return to_jsonable_python(value)
        except (PydanticSerializationError, ValueError, TypeError):
            pass  # its message shows the value
    raise Unstorable(f"{path}: {kind_of(value)} cannot be stored")


def _allows_extra(annotation: Any, seen: set[Any]) -> bool:
    """Say whether a model in the type keeps what it has no field for."""
    cls = typing.get_origin(annotation) or annotation
    if is_model(cls) and cls not in seen:
        seen.add(cls)
        if _config_of(cls).get("extra") == "allow":
            return True
        if any(_allows_extra(each, seen) for _, each, _ in _fields_of(cls)):
            return True
    return any(_allows_extra(each, seen) for each in typing.get_args(annotation))


def unstorable_in(
    annotation: Any, path: str, seen: set[Any], metadata: tuple[Any, ...] = ()
) -> tuple[str, object] | None:
    """Return the path to the first type in a model that cannot be stored, and the type."""
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if is_secret(annotation):
        return path, annotation
    if origin is Annotated:
        return unstorable_in(arguments[0], path, seen, (*metadata, *annotation.__metadata__))
    if origin is None and bare(annotation) is not annotation:  # an alias, which may hold itself
        if annotation in seen:
            return None
        seen.add(annotation)
        return unstorable_in(bare(annotation), path, seen, metadata)
    if origin in (Callable, type) or annotation in (Callable, type, typing.Callable):
        return path, annotation
    if origin is typing.Literal:
        return None
    for each in arguments:
        many = isinstance(origin, type) and origin.__module__ in ("builtins", "collections.abc")
        found = unstorable_in(each, f"{path}[]" if many else path, seen)
        if found is not None:
            return found
    cls = origin or annotation
    if not isinstance(cls, type) or cls in seen or (origin is not None and not is_model(cls)):
        return None
    seen.add(cls)
    if (fields := _fields_of(cls)) or is_model(cls):
        for name, each, extras in fields:
            if (found := unstorable_in(each, f"{path}.{name}", seen, extras)) is not None:
                return found
        return None
    seen.discard(cls)  # it may be storable at one place only, by what is written beside it
    return None if _is_known(cls, metadata) else (path, annotation)


def _fields_of(cls: Any) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Return the fields of a class that pydantic alone converts, with metadata."""
    fields = getattr(cls, "__pydantic_fields__", None)
    if fields is None:
        known = dataclasses.is_dataclass(cls) or is_typeddict(cls) or hasattr(cls, "_fields")
        hints = typing.get_type_hints(cls, include_extras=True) if known else {}
        return [(name, each, ()) for name, each in hints.items()]
    own = getattr(cls, "__pydantic_decorators__", None)
    serialized = {
        name
        for each in (own.field_serializers.values() if own is not None else ())
        for name in each.info.fields
    }
    return [
        (name, field.annotation, tuple(field.metadata))
        for name, field in fields.items()
        if name not in serialized  # its author has said how
    ]


def _config_of(cls: Any) -> Mapping[str, Any]:
    config: Mapping[str, Any] = (
        getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}
    )
    return config


def _is_known(cls: type, metadata: tuple[Any, ...]) -> bool:
    """Say whether pydantic knows a class, or is told by the metadata how to convert it."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        told: Any = Annotated[(cls, *metadata)] if metadata else cls
        TypeAdapter(told)
    except PydanticSchemaGenerationError:
        return False
    return True
