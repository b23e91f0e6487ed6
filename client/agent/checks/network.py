"""Whether the coordinator can be reached, is who it should be, and counts on this site.

Connections go outward alone, with the proxy that the environment names, if it does: Flower's
SuperNode heeds the same variables. Nothing waits longer than five seconds.
"""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from medfed.client.agent.asking import DeclinedError
from medfed.client.agent.checks.finding import Finding, Level, Subject
from medfed.client.agent.checks.hello import (
    Hello,
    explain_clock,
    is_clock_refused,
    say_hello,
    why_no_hello,
)
from medfed.client.agent.enrol import ask_state, read_enrolment
from medfed.client.site import SiteConfig
from medfed.common.addresses import is_ip, join_address, split_address
from medfed.common.bundle import bundle_digest
from medfed.common.errors import FederationError

_TIMEOUT_S = 5.0
_SOON_DAYS = 30
_CLOSE_S = 2.0
_CHECKS = ("name", "connection", "certificate", "clock", "membership", "release")


def check_network(subject: Subject) -> Iterator[Finding]:
    """Check the way to the coordinator, step by step; what cannot be checked is skipped."""
    site = subject.site
    if not site.connection.address:
        yield Finding("network", "skipped", "not enrolled yet: medfed site enroll INVITE")
        return
    left = list(_CHECKS)
    for step in (_check_way, _check_coordinator, _check_membership):
        failed = ""
        for finding in step(site):
            yield finding
            left.remove(finding.check)
            failed = finding.check if finding.level == "failed" else failed
        if failed:
            yield from (Finding(one, "skipped", f"see {failed}") for one in left)
            return


def proxy_for(host: str) -> str:
    """Return the proxy for HTTPS to `host`, without a password; empty if there is none."""
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all") or ""
    if not proxy or proxy_bypass(host):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"{parts.hostname}:{parts.port or 80}"


def _check_way(site: SiteConfig) -> Iterator[Finding]:
    try:
        host, port = split_address(site.connection.address)
    except FederationError as error:
        yield Finding("name", "failed", f"[connection] address: {error}")
        return
    proxy = proxy_for(host)
    if proxy:
        yield Finding("name", "ok", f"{host} is left to the proxy {proxy}")
        target = split_address(proxy)
    else:
        resolved = _check_name(host)
        yield resolved
        if resolved.level == "failed":
            return
        target = host, port
    where = join_address(*target)
    through = f" (the proxy, for {site.connection.address})" if proxy else ""
    try:
        start = time.perf_counter()
        with socket.create_connection(target, timeout=_TIMEOUT_S):
            took = (time.perf_counter() - start) * 1000
        yield Finding("connection", "ok", f"TCP to {where}{through} in {took:.0f} ms")
    except OSError as error:
        yield Finding("connection", "failed", _why_not_connected(error, where) + through)


def _check_name(host: str) -> Finding:
    if is_ip(host):
        return Finding("name", "ok", f"{host} is an IP address")
    found: list[str] = []

    def resolve() -> None:
        try:
            answers = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
            found.extend(sorted({str(answer[4][0]) for answer in answers}))
        except OSError as error:
            found.append(f"! {error.strerror}")

    # The system's resolver has no time limit of its own.
    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    if not found:
        return Finding(
            "name", "failed", f"{host}: no answer from this network's DNS in {_TIMEOUT_S:.0f} s"
        )
    if found[0].startswith("!"):
        return Finding(
            "name",
            "failed",
            f"{host} is not known to this network's DNS ({found[0][2:]}). Check [connection] "
            "address, or ask your network's people to let the name through.",
        )
    return Finding("name", "ok", f"{host} is {', '.join(found[:3])}")


def _why_not_connected(error: OSError, where: str) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"Nothing listens at {where}. Ask the coordinator whether its server runs."
    return (
        f"No connection to {where} ({error.strerror or 'no answer in time'}). A firewall may be in "
        f"the way: this machine needs outgoing TCP to {where}, and nothing incoming."
    )


def _check_coordinator(site: SiteConfig) -> Iterator[Finding]:
    host, port = split_address(site.connection.address)
    where = join_address(host, port)
    ca = site.path(site.connection.ca)
    try:
        hello = say_hello(f"https://{where}/health", ca.read_bytes())
    except FileNotFoundError:
        yield Finding(
            "certificate",
            "failed",
            f"{ca} is missing: the authority to trust comes with the invite. "
            "medfed site enroll INVITE",
        )
        return
    except (OSError, FederationError, httpx.HTTPError) as error:
        yield Finding("certificate", "failed", why_no_hello(error, host, where))
        return
    if hello.status != httpx.codes.OK:
        yield Finding(
            "certificate",
            "failed",
            f"{where} shows the right certificate but answers /health with {hello.status}: no "
            "medfed coordinator, or a proxy in between. Check the address.",
        )
        return
    yield _judge_certificate(hello, host)
    yield _judge_clock(hello.ahead_s)


def _judge_certificate(hello: Hello, host: str) -> Finding:
    text = f"made out for {host} by the pinned authority"
    if hello.expires is None:
        return Finding("certificate", "ok", text)
    days = (hello.expires - datetime.now(UTC)).days
    level: Level = "warning" if days < _SOON_DAYS else "ok"
    renew = ". Remind the coordinator to renew it." if level == "warning" else ""
    return Finding("certificate", level, f"{text}, valid for {days} more days{renew}")


def _judge_clock(ahead_s: float | None) -> Finding:
    if ahead_s is None:
        return Finding("clock", "warning", "The coordinator's answer had no date to compare with.")
    if abs(ahead_s) <= _CLOSE_S:
        return Finding("clock", "ok", "within two seconds of the coordinator's")
    level: Level = "failed" if is_clock_refused(ahead_s) else "warning"
    return Finding("clock", level, explain_clock(ahead_s))


def _check_membership(site: SiteConfig) -> Iterator[Finding]:
    if read_enrolment(site) is None:
        yield Finding("membership", "failed", "Not enrolled: medfed site enroll INVITE")
        return
    try:
        known = ask_state(site)
    except DeclinedError as error:
        yield Finding("membership", "failed", f"The coordinator does not know this site. {error}")
        return
    except FederationError as error:
        yield Finding("membership", "failed", str(error))
        return
    if known.state == "approved":
        yield Finding("membership", "ok", f"approved as {known.site} in {known.federation}")
    elif known.state == "enrolled":
        yield Finding(
            "membership",
            "failed",
            f"enrolled, not yet approved. Telephone the coordinator: both sides must read "
            f"{known.fingerprint}.",
        )
    else:
        yield Finding(
            "membership", "failed", f"{known.state}. Ask the coordinator for a new invite."
        )
    yield _judge_release(site, known.bundle, known.coordinator_version)


def _judge_release(site: SiteConfig, bundle: str, theirs: str) -> Finding:
    ours = version("medfed")
    if bundle in (site.connection.bundles or (bundle_digest(),)):
        return Finding("release", "ok", f"medfed {ours}, and the coordinator's bundle is accepted")
    if site.connection.bundles:
        return Finding(
            "release",
            "failed",
            f"The coordinator's bundle {bundle} is not among [connection] bundles. Add it if you "
            "trust it.",
        )
    return Finding(
        "release",
        "failed",
        f"The coordinator runs medfed {theirs}, this site {ours}: its messages would be refused. "
        "Install the same release.",
    )
