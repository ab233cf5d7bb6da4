"""Records: data classes that are cheap to import, for strato-vmm and the shim.

To a type checker these are the names of `dataclasses`; when the program runs they are `vmm.record_class`'s.
Not supported: inherited fields, ClassVar, InitVar, ordering, slots, and options of `field` other than
default, default_factory and metadata.
"""

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from dataclasses import MISSING as MISSING
    from dataclasses import Field as Field
    from dataclasses import dataclass as record
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import is_dataclass as is_record
    from dataclasses import replace as replace
else:
    from .record_class import MISSING, Field, field, fields, is_record, record, replace

__all__ = ("MISSING", "Field", "field", "fields", "is_record", "record", "replace")
