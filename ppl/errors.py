"""Errors of the language. Each names the site and says what to do instead."""


class ProgramError(ValueError):
    """A program used in a way that has no meaning."""


class EstimatedDensity(ProgramError):
    """A density was asked for exactly, without a key, where it is only estimated."""


def site_name(where: tuple[str, ...], name: str) -> str:
    """The quoted address of a site for messages."""
    return repr("/".join((*where, name)))
