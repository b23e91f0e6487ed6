import pytest

from medfed.common.addresses import join_address, split_address
from medfed.common.errors import FederationError


@pytest.mark.parametrize(
    ("text", "host", "port", "normal"),
    [
        ("fed.example.org", "fed.example.org", 8443, "fed.example.org:8443"),
        ("Fed.Example.org:443", "fed.example.org", 443, "fed.example.org:443"),
        ("coordinator:1", "coordinator", 1, "coordinator:1"),
        ("192.0.2.7:65535", "192.0.2.7", 65535, "192.0.2.7:65535"),
        ("::1", "::1", 8443, "[::1]:8443"),
        ("[2001:DB8::7]:9000", "2001:db8::7", 9000, "[2001:db8::7]:9000"),
        ("[2001:db8::7]", "2001:db8::7", 8443, "[2001:db8::7]:8443"),
        ("xn--krankenhaus-kln-yzb.example", *("xn--krankenhaus-kln-yzb.example", 8443), None),
    ],
)
def test_address_is_host_and_port(text: str, host: str, port: int, normal: str | None) -> None:
    assert split_address(text) == (host, port)
    assert split_address(join_address(host, port)) == (host, port)
    if normal:
        assert join_address(host, port) == normal


@pytest.mark.parametrize(
    "text",
    [
        "", ":8443", "host:", "host:0", "host:65536", "host:-1", "host:84x", "host:\u0661\u0662",
        "host: 80", "https://host", "host/path", "user@host", "a b", "ho\nst", "-host", "host-",
        "a..b", "host.", "192.0.2.256", "1.2.3", "[::1", "[::1]8443", "[host]x", "::1%eth0",
        "[fe80::1%25eth0]:1", "kr\u00e4nkenhaus.de", "host:080", "a" * 64, ".".join(["abc"] * 70),
        "host:8443:1x", "\uff48ost", "host\x00",
    ],
)  # fmt: skip
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FederationError, match="HOST:PORT"):
        split_address(text)
