"""Who may see the avatar: pages opened on this machine, and whoever types the token.

Viser serves its empty client to anybody and has no notion of a login, so the gate stands where the
content is: every page has a scene and widgets of its own, and they stay empty until it is let in.
A page of another site that reaches for this machine's port is told apart by its Origin header.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from gsavatar.errors import InputError


def new_token() -> str:
    """A token nobody can guess (128 bits)."""
    return secrets.token_urlsafe(16)


def same_token(given: str, token: str) -> bool:
    """Whether the token is right; takes equally long wherever it is wrong."""
    return hmac.compare_digest(given.strip().encode(), token.encode())


def is_local(host: str | None) -> bool:
    """Whether a host name means this machine and no other can reach it."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def opened_here(headers: Mapping[str, str] | None, bound_to: str) -> bool:
    """Whether a page's request shows that it was opened on this machine, from this server.

    Another site's page has its own Origin, also when its name was pointed at this machine. Unknown
    headers count as foreign.
    """
    if headers is None or not is_local(bound_to):
        return False
    host = urlsplit(f"//{headers.get('Host', '')}").hostname
    origin = headers.get("Origin")
    if not is_local(host):
        return False
    return origin is None or urlsplit(origin).netloc == headers.get("Host")


def check_address(host: str, port: int) -> None:
    """Raises ``InputError`` unless this machine can listen on the address."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is not a port; give a number from 0 to 65535.")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host} is not an address of this machine ({error}); use 127.0.0.1 or 0.0.0.0."
        ) from None
