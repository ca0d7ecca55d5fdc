# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Download of an image from a URL, guarded against requests to private addresses, slow servers and large files."""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from typing import Any

from ...utils.errors import first_line
from .errors import RequestError


_TIMED_OUT = "the URL in `inputs` took too long: send the image itself."


def fetch(url: str, max_bytes: int, timeout: float, public_only: bool) -> bytes:
    """
    Download a file. Redirects are not followed. The connection goes to the address that was checked, so that a second
    look-up of the name cannot lead elsewhere. `timeout` limits the whole download, in seconds. `public_only` refuses
    hosts with an address that is not public.

    Raises:
        RequestError: if the URL is malformed, the host is unreachable or not public, the status is not 200, the download
            exceeds `timeout`, or the file exceeds `max_bytes` (`status_code` 413).
    """
    deadline = time.monotonic() + timeout
    try:
        parts = urllib.parse.urlsplit(url)
        host, is_secure = (parts.hostname or "").encode("idna").decode("ascii"), parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
    except ValueError:
        host = ""
    if not host or parts.username is not None:
        raise RequestError("the URL in `inputs` is not valid: send one such as https://example.com/photo.jpg.")
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
    try:
        addresses = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if public_only and not all(is_public(str(address)) for address in addresses):
            raise RequestError("the URL in `inputs` leads to an address that is not public: send the image itself.")
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        with contextlib.closing(connection):
            connection.sock = _connect(addresses, port, deadline)
            sockets = [connection.sock]  # the connection drops its own reference while the answer is still being read
            # a server that sends a byte now and then never exceeds the timeout of the socket
            timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut_down, [sockets])
            timer.start()
            try:
                if is_secure:
                    context = ssl.create_default_context()
                    connection.sock = context.wrap_socket(
                        connection.sock, server_hostname=host, do_handshake_on_connect=False
                    )
                    sockets.append(connection.sock)
                    connection.sock.do_handshake()
                return _download(connection, target, max_bytes, deadline)
            finally:
                timer.cancel()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise RequestError(_TIMED_OUT) from None
        raise RequestError(f"cannot fetch the URL in `inputs`: {first_line(error)[:300]}") from None


def _download(connection: http.client.HTTPConnection, target: str, max_bytes: int, deadline: float) -> bytes:
    headers = {"Accept": "image/*", "User-Agent": "hf_segmodels", "Connection": "close"}
    connection.request("GET", target, headers=headers)
    with connection.getresponse() as response:
        if response.status != 200:
            hint = " (redirects are not followed)" if 300 <= response.status < 400 else ""
            raise RequestError(f"the URL in `inputs` answered with status {response.status}{hint}.")
        data = response.read(max_bytes + 1)
    if time.monotonic() >= deadline:  # the answer may be incomplete
        raise RequestError(_TIMED_OUT)
    if len(data) > max_bytes:
        raise RequestError(
            f"the file at the URL in `inputs` has more than the {max_bytes} bytes allowed: send a smaller one.", 413
        )
    return data


def _connect(addresses: list[Any], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers."""
    error = OSError("the host has no address")
    for address in addresses:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        try:
            return socket.create_connection((str(address), port), timeout=remaining)
        except OSError as failure:
            error = failure
    raise error


def _shut_down(sockets: list[socket.socket]) -> None:
    for item in sockets:
        with contextlib.suppress(OSError):
            item.shutdown(socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """
    Whether an IP address is global: not private, loopback, link-local, multicast or reserved. An IPv4 address that is
    embedded in an IPv6 address has to be global, too.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    embedded = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if embedded is not None:
        return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
