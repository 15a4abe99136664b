import collections

import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.named_class import make_named

pytestmark = pytest.mark.quick


def test_a_class_is_made_by_its_name():
    assert make_named("collections:Counter", "a.b") == collections.Counter()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("collections", "config.a.b 'collections' is not of the form package.module:ClassName"),
        ("collections:", "is not of the form package.module:ClassName"),
        ("no.such:Class", "cannot import no.such"),
        ("collections:None", "module collections has no None"),
    ],
)
def test_what_does_not_exist_is_named(name, message):
    with pytest.raises(InputError, match=message):
        make_named(name, "config.a.b")
