"""Classes that are made of their fields."""

from __future__ import annotations

import pytest

from keyspace_amqp.values import mutable, replace, text_of, value


@value
class Point:
    """A value."""

    x: int
    y: int = 7

    @property
    def size(self) -> int:
        return self.x + self.y


@value
class Place:
    """Another class with the same fields."""

    x: int
    y: int = 7


@value
class Nothing:
    """A value without fields."""


@mutable
class Counter:
    """It may change."""

    name: str
    count: int = 0


@mutable
class Slotted:
    """With methods of its own."""

    __slots__ = ("a", "secret")

    a: int
    secret: str

    def __init__(self, a: int) -> None:
        self.a = a
        self.secret = "s"

    def __repr__(self) -> str:
        return text_of(self, hidden=("secret",))


def test_construction() -> None:
    assert (Point(1).x, Point(1).y, Point(y=2, x=1).y, Point(1).size) == (1, 7, 2, 8)
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(1, z=2)  # type: ignore[call-arg]
    match Point(3, 4):
        case Point(x, y=y):
            assert (x, y) == (3, 4)


def test_comparison() -> None:
    assert Point(1) == Point(1, 7)
    assert Point(1) != Point(2)
    assert Point(1) != Place(1)  # type: ignore[comparison-overlap]
    assert Nothing() == Nothing()
    assert Nothing()  # an empty tuple would be false
    assert {Point(1): "a"}[Point(1)] == "a"
    assert Counter("a") == Counter("a", 0)
    with pytest.raises(TypeError):
        hash(Counter("a"))


def test_changes() -> None:
    counter = Counter("a")
    counter.count += 1
    assert counter == Counter("a", 1)
    assert Counter("a").count == 0
    point = Point(1)
    assert replace(point, x=2) == Point(2)
    assert point == Point(1)
    with pytest.raises(TypeError):
        replace(point, z=2)


def test_text() -> None:
    assert repr(Point(1)) == "Point(x=1, y=7)"
    assert repr(Nothing()) == "Nothing()"
    assert repr(Slotted(1)) == "Slotted(a=1)"


def test_methods_of_its_own_stay() -> None:
    assert Slotted(1).secret == "s"
    assert Slotted(1) == Slotted(1)
    with pytest.raises(AttributeError):
        Slotted(1).other = 2  # type: ignore[attr-defined]
