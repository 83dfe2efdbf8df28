"""The one exception of macelib: a sentence that names the cause and the cure."""


class MaceError(ValueError):
    """What the caller gave cannot be used; the message says why and what to do."""


def need(module: str, extra: str):
    """Import and return an optional module; MaceError names the extra that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MaceError(
            f'{module} is needed here and cannot be imported ({error}): pip install "macelib[{extra}]".'
        ) from error
