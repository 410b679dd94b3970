"""What a request says: one picture, and options of `tudsr upscale` as form fields of their names.

The fields are made of the options themselves, so that a name, a default or a help is written once.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from tudsr_runtime.batch.options import UpscaleOptions
from tudsr_runtime.errors import UsageError, quoted

FIELDS = (
    "scale",
    "width",
    "height",
    "longest",
    "megapixels",
    "format",
    "quality",
    "compression",
    "metadata",
    "bundle",
    "strength",
    "color",
    "wrap",
    "factors",
    "overlap",
)
"""The options of the command that are a matter of one picture. The others are the server's."""

MAX_FIELD_BYTES = 4096

EXAMPLE = "curl -F file=@photo.jpg"


def _declared(name: str) -> tuple[Any, Any]:
    """Type and limits of a field, as the option of that name declares them."""
    kind, option = get_args(get_type_hints(UpscaleOptions, include_extras=True)[name])
    limits = {"ge": option.min, "le": option.max}
    given = {key: value for key, value in limits.items() if value is not None}
    described = Field(description=option.help, **given)
    # "inf" and "nan" are floats, and sizes of nothing.
    finite = Field(allow_inf_nan=False) if float in get_args(kind) else Field()
    return Annotated[kind, described, finite], getattr(UpscaleOptions, name)


def _fields() -> dict[str, Any]:
    of_the_server = Field(description="A name that /info lists; the first of them if none is given.")
    return {name: _declared(name) for name in FIELDS} | {"bundle": (Annotated[str, of_the_server], "")}


Form: type[BaseModel] = create_model(
    "Form",
    __config__=ConfigDict(extra="forbid"),
    **_fields(),
)
"""The fields beside the picture, checked; what is none of them is refused rather than ignored."""


def schema() -> dict[str, Any]:
    """The body of a request, for OpenAPI."""
    made = Form.model_json_schema()
    picture = {
        "type": "string",
        "format": "binary",
        "description": "PNG, JPEG, WebP, TIFF, BMP or AVIF.",
    }
    properties = {"file": picture, **made["properties"]}
    body = {**made, "title": "Upscale", "properties": properties, "required": ["file"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": body}}}


class _Parser(MultiPartParser):
    spool_max_size = 64 << 10
    """Bytes of an upload that are held in memory; there may be as many uploads as connections."""


async def read_form(request: Request) -> tuple[UploadFile, UpscaleOptions]:
    """The picture and the options of a request; the caller closes the file.

    Raises:
        UsageError: no such form, or a field that is unknown, given twice or out of its range. And what
            receiving raises.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise UsageError(
            f"a form (multipart/form-data) is needed, not {quoted(kind or 'nothing')}",
            hint=EXAMPLE,
        )
    most = {"max_files": 1, "max_fields": len(FIELDS) + 1, "max_part_size": MAX_FIELD_BYTES}
    parser = _Parser(request.headers, request.stream(), **most)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise UsageError(f"the form cannot be read: {error.message}") from error
    try:
        return _checked(form)
    except UsageError:
        # That of a form without an end is in no field.
        for file in parser._files_to_close_on_error:
            file.close()
        raise


def _checked(form: FormData) -> tuple[UploadFile, UpscaleOptions]:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the field {quoted(name)} is there {names.count(name)} times")
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise UsageError("the field 'file' is missing, or holds no file", hint=EXAMPLE)
    texts = {name: value for name, value in form.items() if name != "file"}
    try:
        found = Form.model_validate(texts)
    except ValidationError as error:
        raise UsageError(_in_words(error), hint=f"the fields are file, {', '.join(FIELDS)}") from error
    return file, UpscaleOptions(**{name: getattr(found, name) for name in FIELDS})


def _in_words(error: ValidationError) -> str:
    """The first thing that is wrong, as pydantic says it."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"there is no field {quoted(name)}"
    return f"{name}: {first['msg']}, not {quoted(first['input'])}"
