"""instar makes, inspects and checks virtual disk images that nobody should trust.

Importing this package imports nothing else, not even ``__future__``, which ``python -m`` would look for in the working
folder; each name is loaded on first use (PEP 562).
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.errors import HostError, ImageError, InstarError, InternalError, OptionError, SandboxError
    from instar.host.arguments import Fd
    from instar.host.check import CheckResult, check
    from instar.host.configuration import Configuration, read_configuration
    from instar.host.create import CreateResult, create
    from instar.host.create_many import create_many
    from instar.host.info import ImageInfo, info, info_chain
    from instar.host.sandbox import SelfTestResult, self_test
    from instar.host.window import Window
    from instar.sandbox.cell import Isolation

_NAMES = {
    "create": "instar.host.create",
    "create_many": "instar.host.create_many",
    "CreateResult": "instar.host.create",
    "info": "instar.host.info",
    "info_chain": "instar.host.info",
    "ImageInfo": "instar.host.info",
    "Fd": "instar.host.arguments",
    "check": "instar.host.check",
    "CheckResult": "instar.host.check",
    "read_configuration": "instar.host.configuration",
    "Configuration": "instar.host.configuration",
    "Window": "instar.host.window",
    "self_test": "instar.host.sandbox",
    "SelfTestResult": "instar.host.sandbox",
    "Isolation": "instar.sandbox.cell",
    "InstarError": "instar.core.errors",
    "OptionError": "instar.core.errors",
    "ImageError": "instar.core.errors",
    "HostError": "instar.core.errors",
    "SandboxError": "instar.core.errors",
    "InternalError": "instar.core.errors",
}

__all__ = [
    "CheckResult",
    "Configuration",
    "CreateResult",
    "Fd",
    "HostError",
    "ImageError",
    "ImageInfo",
    "InstarError",
    "InternalError",
    "Isolation",
    "OptionError",
    "SandboxError",
    "SelfTestResult",
    "Window",
    "check",
    "create",
    "create_many",
    "info",
    "info_chain",
    "read_configuration",
    "self_test",
]


def __getattr__(name: str) -> object:
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'instar' has no attribute {name!r}")
    import sys

    __import__(module)
    value: object = getattr(sys.modules[module], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
