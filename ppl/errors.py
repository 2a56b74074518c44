"""Errors of the language. Each names the site and says what to do instead."""


class ProgramError(ValueError):
    """A program used in a way that has no meaning."""


def site_name(where: tuple[str, ...], name: str) -> str:
    """The quoted address of a site for messages."""
    return repr("/".join((*where, name)))
