"""Whether the coordinator can be reached, in words: asked now and then over the same TLS."""

import logging
import ssl
import threading

import httpx

from medfed.client.site import SiteConfig
from medfed.common.addresses import split_address
from medfed.common.errors import FederationError
from medfed.common.tls import explain, trust_only

log = logging.getLogger(__name__)

_ASK_EVERY_S = 15.0
_TRY_AGAIN_S = 3.0
_TIMEOUT_S = 5.0


class Reach:
    """Asks the coordinator's /health on a thread.

    Attributes:
        connected: The last question was answered.
        problem: Why not, else.
    """

    def __init__(self, site: SiteConfig) -> None:
        self._url = f"https://{site.connection.address}/health"
        self._host = split_address(site.connection.address)[0]
        self._ca = site.path(site.connection.ca)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reach", daemon=True)
        self.connected = False
        self.problem = "the coordinator has not answered yet"

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(_TIMEOUT_S + 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.problem = self._ask()
            self.connected = not self.problem
            self._stop.wait(_ASK_EVERY_S if self.connected else _TRY_AGAIN_S)

    def _ask(self) -> str:
        """Return why the coordinator cannot be reached; empty if it can."""
        try:
            answer = httpx.get(
                self._url, timeout=_TIMEOUT_S, verify=trust_only(self._ca.read_bytes())
            )
        except (OSError, FederationError) as error:
            return f"{self._ca.name} cannot be used: {error}"
        except httpx.ConnectError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, ssl.SSLCertVerificationError):
                    why = explain(cause, self._host)
                    return f"the coordinator's certificate is not accepted: {why}"
                cause = cause.__cause__ or cause.__context__
            return f"the coordinator cannot be reached: {error}"
        except httpx.HTTPError as error:
            return f"the coordinator does not answer: {type(error).__name__}"
        return "" if answer.is_success else f"the coordinator answers {answer.status_code}"
