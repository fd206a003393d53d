"""Random JSON schemas that use every keyword which the server says it enforces."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

PATTERNS = ["^[a-f]{1,4}$", "^x[0-9]+y?$", "^(red|green|blue)$", "^\\d{2}-\\d{3}$", "[qz]", "^[A-Z][a-z]{0,5} ?!?$"]
FORMATS = ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]
VALUES: list[Any] = ["a", "two words", 'quo"te', "é", "", 0, -7, 2.5, 10**6, True, False, None, [1, "x"], {"k": [None]}]
NAMES = ["id", "name", "a b", "ü", 'q"', "list", "x1", "deep", "$ref", "type"]


class SchemaMaker:
    """Draws schemas; `used` are the keywords so far."""

    def __init__(self, seed: int) -> None:
        self.used: set[str] = set()
        self._rng = random.Random(seed)
        self._defs: list[str] = []

    def schema(self) -> Schema:
        """A whole schema: something that is valid exists, and not all of it is large."""
        rng = self._rng
        self._defs = [f"d{at}" for at in range(rng.choice((0, 0, 1, 2)))]
        names, self._defs = self._defs, []
        place = rng.choice(("$defs", "definitions"))
        shared: Schema = {}
        for name in names:  # a definition may use those before it
            shared[name] = self._any(2)
            self._defs.append(f"#/{place}/{name}")
        made = self._any(3)
        if shared:
            self.used.add(place)
            made = {"allOf": [made]} if "$ref" in made else made
            self.used |= {"allOf"} & set(made)
            made = made | {place: shared}
        if rng.random() < 0.1:
            self.used |= {"$ref", "$defs"}
            tree: Schema = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}, "value": made}}
            if shared:
                return made
            return {"$defs": {"tree": tree | {"additionalProperties": False}}, "$ref": "#/$defs/tree"}
        return made

    def _use(self, **keywords: Any) -> Schema:
        made = {name.rstrip("_"): value for name, value in keywords.items() if value is not None}
        self.used |= set(made)
        return made

    def _any(self, depth: int) -> Schema:
        simple = [self._string, self._integer, self._number, self._value, self._other]
        nested = [self._array, self._object, self._object, self._alternatives, self._merged, self._reference]
        return self._rng.choice(simple if depth == 0 else simple + nested)(depth)

    def _string(self, depth: int) -> Schema:
        rng = self._rng
        kind = rng.choice(("length", "length", "pattern", "format", "pattern and length"))
        if kind == "format":
            return self._use(type="string", format=rng.choice(FORMATS))
        if kind == "pattern":
            return self._use(type="string", pattern=rng.choice(PATTERNS))
        if kind == "pattern and length":
            return self._use(
                type="string", pattern="^[a-c]*$", minLength=rng.randint(0, 3), maxLength=rng.randint(3, 9)
            )
        least = rng.choice((None, 0, 1, 4))
        return self._use(type="string", minLength=least, maxLength=(least or 0) + rng.randint(0, 12))

    def _integer(self, depth: int) -> Schema:
        rng = self._rng
        low = rng.randint(-1000, 1000)
        high = low + rng.randint(12, 5000)
        made = self._use(type="integer", **{rng.choice(("minimum", "exclusiveMinimum")): low})
        made |= self._use(**{rng.choice(("maximum", "exclusiveMaximum")): high})
        return made | (self._use(multipleOf=rng.choice((2, 3, 5))) if rng.random() < 0.3 else {})

    def _number(self, depth: int) -> Schema:
        rng = self._rng
        if rng.random() < 0.2:
            return self._use(type="number", multipleOf=rng.choice((0.5, 0.25, 10)))
        low = rng.randint(-50, 50) / 4
        made = self._use(type="number", **{rng.choice(("minimum", "exclusiveMinimum")): low})
        return made | self._use(**{rng.choice(("maximum", "exclusiveMaximum")): low + rng.randint(1, 400) / 8})

    def _value(self, depth: int) -> Schema:
        rng = self._rng
        if rng.random() < 0.4:
            return self._use(const=rng.choice(VALUES))
        return self._use(enum=rng.sample(VALUES, rng.randint(1, 5)))

    def _other(self, depth: int) -> Schema:
        return self._use(type=self._rng.choice(("null", "boolean", ["boolean", "null"])))

    def _array(self, depth: int) -> Schema:
        rng = self._rng
        first = [self._any(depth - 1) for _ in range(rng.choice((0, 0, 1, 2)))]
        least = rng.randint(0, 2)
        made = self._use(type="array", minItems=least, maxItems=least + rng.randint(0, 2))
        if first and rng.random() < 0.3:  # the older spelling
            self.used |= {"items", "additionalItems"}
            draft = {"$schema": "http://json-schema.org/draft-07/schema#", "minItems": 0, "maxItems": len(first)}
            return made | draft | {"items": first, "additionalItems": False}
        if first:
            made |= self._use(prefixItems=first)
        return made | self._use(items=self._any(depth - 1))

    def _object(self, depth: int) -> Schema:
        rng = self._rng
        names = rng.sample(NAMES, rng.randint(1, 4))
        made = self._use(type="object", properties={name: self._any(depth - 1) for name in names})
        if rng.random() < 0.7:
            made |= self._use(required=rng.sample(names, rng.randint(1, len(names))))
        kind = rng.random()
        if kind < 0.5:
            made |= self._use(additionalProperties=False)
        elif kind < 0.65:
            made |= self._use(additionalProperties=self._any(0), maxProperties=len(names) + 1, required=names)
        elif kind < 0.8:
            made |= self._use(patternProperties={"^p_[a-z]{1,3}$": self._any(0)}, additionalProperties=False)
        else:
            extra = self._use(additionalProperties=self._any(0), minProperties=len(names) + 1)
            made |= extra | self._use(maxProperties=len(names) + 2, required=names)
        return made

    def _alternatives(self, depth: int) -> Schema:
        rng = self._rng
        if rng.random() < 0.5:
            return self._use(anyOf=[self._any(depth - 1) for _ in range(rng.randint(1, 3))])
        exclusive = [self._string(0), self._integer(0), self._use(type="boolean"), self._array(depth)]
        return self._use(oneOf=rng.sample(exclusive, rng.randint(1, 3)))

    def _merged(self, depth: int) -> Schema:
        rng = self._rng
        if rng.random() < 0.5:
            return self._use(allOf=[self._use(type="string", minLength=rng.randint(0, 3)), self._use(maxLength=6)])
        parts = [
            self._use(type="object", properties={name: self._any(0)}, required=[name]) for name in rng.sample(NAMES, 2)
        ]
        self.used.add("allOf")
        return {"allOf": [*parts, self._use(maxProperties=2)]}

    def _reference(self, depth: int) -> Schema:
        if not self._defs:
            return self._string(depth)
        return self._use(**{"$ref": self._rng.choice(self._defs)})
