"""Types of all other kinds are stored by cattrs, which is imported when one of them is met.

A converter of our own, for one type. It is stricter than cattrs: a text is no number, a text is
no list of letters, and a map with a key that the class has no field for is of another class.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, TypeVar, Union

import attrs

from kvreplay._protocol.codec import Codec
from kvreplay._typed.annotations import (
    SCALARS,
    STORED_AS,
    bare,
    is_typeddict,
    required_keys,
    union_of,
)
from kvreplay._typed.leaves import LEAVES
from kvreplay._typed.pydantic import model_codec
from kvreplay._typed.scalars import (
    Decode,
    decode_checked,
    decode_enum,
    decode_kinds,
    decode_leaf,
    decode_literal,
    decode_scalar,
    keep,
    plain_of,
    refuse,
)
from kvreplay._typed.shapes import Kind, Misfit, Shape
from kvreplay._typed.walk import Shapes
from kvreplay.errors import ConfigError

__all__ = ["cattrs_codec"]

Encode = Callable[[Any], object]


def cattrs_codec(shape: Shape, shapes: Shapes, name: str) -> Codec[Any]:
    """Return how a type is stored. Encoding does not look whether all is kept.

    Raises:
        ConfigError: cattrs is not installed, or cannot tell the members of a union apart.
    """
    try:
        import cattrs
    except ImportError:
        raise ConfigError(
            f"{shapes.said}: cattrs stores it, and cannot be imported:"
            " pip install 'kvreplay[typed]'; nothing ran"
        ) from None
    # Without the detail: what is wrong with stored bytes is for no user to mend.
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    _Hooks(converter, shapes).register()
    annotation = shape.annotation
    try:
        encode = converter.get_unstructure_hook(annotation)
        structure = converter.get_structure_hook(annotation)
    except (TypeError, cattrs.StructureHandlerNotFoundError) as error:
        raise ConfigError(
            f"{shapes.said}: cattrs cannot store it ({type(error).__name__}): give encode= and"
            " decode=; nothing ran"
        ) from error
    return Codec(encode, lambda data: structure(data, annotation), name)


class _Hooks:
    """What a converter does otherwise than cattrs."""

    def __init__(self, converter: Any, shapes: Shapes) -> None:
        self._converter = converter
        self._shapes = shapes

    def register(self) -> None:
        """Tell the converter. Where two fit, it takes the one that was registered later.

        A class's own hook comes before them, and is its subclasses' too: so an enum of texts needs
        one of its own beside that of texts.
        """
        for cls in SCALARS:
            self._register_class(cls, keep, decode_scalar(cls))
        for cls, leaf in LEAVES.items():
            self._register_class(cls, leaf.to_plain, decode_leaf(leaf))
        for shape in self._shapes.all():
            cls = shape.annotation
            own = typing.get_origin(cls) or cls
            if shape.kind is Kind.FIELDS and attrs.has(own):
                attrs.resolve_types(own)  # before 25.2 cattrs does not for a generic class
            if _is_enum(cls):
                self._register_class(cls, plain_of, decode_enum(cls))
            elif shape.kind is Kind.MODEL and isinstance(cls, type):
                self._register_class(cls, self._encode_model(cls), self._decode_model(cls))
        self._register(_is_anything, lambda cls: keep, lambda cls: lambda data, _: data)
        self._register(_is_literal, lambda cls: plain_of, decode_literal)
        self._register(self._is(Kind.ITEMS), self._encode_items, self._decode_items)
        self._register(self._is(Kind.MAP), self._encode_map, self._decode_map)
        self._register(_is_named_tuple, self._encode_named_tuple, self._decode_named_tuple)
        self._register(_is_typeddict, self._encode_typeddict, self._decode_typeddict)
        self._register(self._is(Kind.MODEL), self._encode_model, self._decode_model)
        self._register(_is_union, self._encode_union, self._decode_union)
        self._register(_is_wrapped, self._encode_bare, self._decode_bare)

    def _register_class(self, cls: Any, encode: Encode, decode: Decode) -> None:
        self._converter.register_unstructure_hook(cls, encode)
        self._converter.register_structure_hook(cls, decode)

    def _register(
        self,
        fits: Callable[[Any], bool],
        encoder: Callable[[Any], Encode],
        decoder: Callable[[Any], Decode],
    ) -> None:
        self._converter.register_unstructure_hook_factory(fits, lambda cls: encoder(cls))
        self._converter.register_structure_hook_factory(fits, lambda cls: decoder(cls))

    def _is(self, kind: Kind) -> Callable[[Any], bool]:
        return lambda cls: self._shapes.of(cls).kind is kind

    # For a class whose hook it is making, cattrs raises a RecursionError: it is looked up later.
    def _encoder(self, cls: Any) -> Encode:
        try:
            hook: Encode = self._converter.get_unstructure_hook(cls, cache_result=False)
        except RecursionError:
            return lambda value: self._converter.unstructure(value, unstructure_as=cls)
        return hook

    def _decoder(self, cls: Any) -> Decode:
        try:
            hook: Decode = self._converter.get_structure_hook(cls, cache_result=False)
        except RecursionError:
            hook = self._converter.structure
        return hook

    def _encode_bare(self, cls: Any) -> Encode:
        return self._encoder(bare(cls))

    def _decode_bare(self, cls: Any) -> Decode:
        return self._decoder(bare(cls))

    def _encode_items(self, cls: Any) -> Encode:
        if (items := _items_of_tuple(cls)) is not None:
            each = [self._encoder(item) for item in items]
            return lambda value: [hook(item) for hook, item in zip(each, value, strict=True)]
        one = self._encoder(_item_of(cls))
        return lambda value: [one(item) for item in value]

    def _decode_items(self, cls: Any) -> Decode:
        if (items := _items_of_tuple(cls)) is not None:
            each = [(self._decoder(item), item) for item in items]

            def decode_tuple(data: Any, _: Any) -> object:
                if type(data) is not list:
                    refuse(data)
                return tuple([hook(one, of) for (hook, of), one in zip(each, data, strict=True)])

            return decode_tuple
        item = _item_of(cls)
        decode, make = self._decoder(item), STORED_AS[typing.get_origin(cls) or cls]
        kinds = frozenset(SCALARS.get(item, ()))

        def decode_scalars(data: Any, _: Any) -> object:  # quick way, for decode_items: bench_typed
            if type(data) is not list or not kinds.issuperset(map(type, data)):
                refuse(data)
            return data if make is list else make(data)

        if kinds:
            return decode_scalars

        def decode_items(data: Any, _: Any) -> object:
            if type(data) is not list:
                refuse(data)
            items = [decode(each, item) for each in data]
            return items if make is list else make(items)

        return decode_items

    def _encode_map(self, cls: Any) -> Encode:
        key, item = (self._encoder(each) for each in typing.get_args(cls) or (Any, Any))
        return lambda value: {key(each): item(one) for each, one in value.items()}

    def _decode_map(self, cls: Any) -> Decode:
        key_of, item_of = typing.get_args(cls) or (Any, Any)
        key, item = self._decoder(key_of), self._decoder(item_of)

        def decode(data: Any, _: Any) -> object:
            if type(data) is not dict:
                refuse(data)
            return {key(each, key_of): item(one, item_of) for each, one in data.items()}

        return decode

    def _encode_named_tuple(self, cls: Any) -> Encode:
        from cattrs.cols import namedtuple_dict_unstructure_factory

        hook: Encode = namedtuple_dict_unstructure_factory(cls, self._converter)
        return hook

    def _decode_named_tuple(self, cls: Any) -> Decode:
        from cattrs.cols import namedtuple_dict_structure_factory

        # By its names: by its places, two fields that change places would change their values.
        hook: Decode = namedtuple_dict_structure_factory(cls, self._converter, False, True)
        return hook

    # cattrs takes a key for required whose NotRequired is only known as a text.
    def _encode_typeddict(self, cls: Any) -> Encode:
        fields = {name: self._encoder(each) for name, each in self._shapes.fields_of(cls).items()}
        return lambda value: {
            name: fields[name](each) if name in fields else each for name, each in value.items()
        }

    def _decode_typeddict(self, cls: Any) -> Decode:
        fields = {
            name: (self._decoder(each), each) for name, each in self._shapes.fields_of(cls).items()
        }
        required = required_keys(typing.get_origin(cls) or cls)

        def decode(data: Any, _: Any) -> object:
            if type(data) is not dict or not required <= data.keys():
                refuse(data)
            made = dict(data)
            for name, (hook, of) in fields.items():
                if name in data:
                    made[name] = hook(data[name], of)
            return made

        return decode

    def _encode_union(self, cls: Any) -> Encode:
        members = [(each, self._encoder(each.annotation)) for each in self._shapes.of(cls).members]

        def encode(value: Any) -> object:
            for member, hook in members:
                try:
                    member.check(value)
                except Misfit:
                    continue
                return hook(value)
            return refuse(value)

        return encode

    def _decode_union(self, cls: Any) -> Decode:
        shape = self._shapes.of(cls)
        if all(each.annotation in SCALARS for each in shape.members):
            return decode_kinds(
                [kind for each in shape.members for kind in SCALARS[each.annotation]]
            )
        if shape.plain:
            return decode_checked(shape.check)
        others = [each for each in shape.members if not each.plain]
        beside = [each.check for each in shape.members if each.plain]
        joined = union_of(each.annotation for each in others)
        if len(others) == 1:
            decode = self._decoder(joined)
        elif others[0].kind is Kind.MODEL:
            decode = self._decode_model(joined)
        else:
            decode = self._decode_classes([each.annotation for each in others])
        if not beside:
            return decode

        def decode_beside(data: Any, _: Any) -> object:
            if data is None or type(data) in SCALARS:
                for check in beside:
                    try:
                        check(data)
                    except Misfit:
                        continue
                    return data
            return decode(data, joined)

        return decode_beside

    def _decode_classes(self, classes: list[Any]) -> Decode:
        from cattrs.disambiguators import create_default_dis_func

        try:
            class_of = create_default_dis_func(self._converter, *classes)
        except TypeError as error:
            raise ConfigError(
                f"{self._shapes.said}: cattrs cannot tell apart the classes of a union in it: give"
                " each a required field that the others lack, or a Literal; or give encode= and"
                " decode=; nothing ran"
            ) from error
        decoders = {each: self._decoder(each) for each in classes}

        def decode(data: Any, _: Any) -> object:
            cls = class_of(data)
            return decoders[cls](data, cls)

        return decode

    def _encode_model(self, cls: Any) -> Encode:
        return model_codec(cls, "", self._shapes.said).encode

    def _decode_model(self, cls: Any) -> Decode:
        decode = model_codec(cls, "", self._shapes.said).decode
        return lambda data, _: decode(data)


# Which types they are.


def _is_anything(cls: Any) -> bool:
    return cls in (Any, object) or isinstance(cls, TypeVar)


def _is_enum(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Enum)


def _is_literal(cls: Any) -> bool:
    return typing.get_origin(cls) is Literal


def _is_named_tuple(cls: Any) -> bool:
    cls = typing.get_origin(cls) or cls
    return isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")


def _is_typeddict(cls: Any) -> bool:
    return is_typeddict(typing.get_origin(cls) or cls)


def _is_union(cls: Any) -> bool:
    return typing.get_origin(cls) in (Union, types.UnionType)


def _is_wrapped(cls: Any) -> bool:
    return cls is not None and bare(cls) is not cls  # None: a field without an annotation


def _item_of(cls: Any) -> Any:
    return (typing.get_args(cls) or (Any,))[0]


def _items_of_tuple(cls: Any) -> tuple[Any, ...] | None:
    """Return the types of a tuple's items; ``None``: it is none that names each."""
    items = typing.get_args(cls)
    if typing.get_origin(cls) is not tuple or (len(items) == 2 and items[1] is ...):
        return None
    return items
