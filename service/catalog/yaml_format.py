"""YAML, read by libyaml where PyYAML has it: five times as fast, which a manifest of 10,000 features needs.

Of libyaml the scanner is used and the parser, but not what makes nodes of their events: that calls itself for what is
nested, and ends the process where lists are nested a hundred thousand deep. PyYAML's own raises RecursionError.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver


def read_yaml(content: bytes) -> Any:
    """What `yaml.safe_load` gives. Raises yaml.YAMLError, or RecursionError."""
    return _Loader(content).get_single_data() if yaml.__with_libyaml__ else yaml.safe_load(content)


if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class _Loader(Composer, CParser, SafeConstructor, Resolver):
        def __init__(self, stream: bytes) -> None:
            CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)
