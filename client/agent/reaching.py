"""Whether the coordinator can be reached, in words: asked now and then over the same TLS."""

import logging
import ssl
import threading

import httpx

from medfed.client.agent.checks.hello import explain_clock, is_clock_refused, say_hello
from medfed.client.site import SiteConfig
from medfed.common.addresses import split_address
from medfed.common.errors import FederationError
from medfed.common.tls import explain

log = logging.getLogger(__name__)

_ASK_EVERY_S = 15.0
_TRY_AGAIN_S = 3.0
_TIMEOUT_S = 5.0


class Reach:
    """Asks the coordinator's /health on a thread.

    Attributes:
        connected: The last question was answered.
        problem: Why not, else.
        clock_problem: Why this machine's clock is not accepted; empty if it is.
    """

    def __init__(self, site: SiteConfig) -> None:
        self._url = f"https://{site.connection.address}/health"
        self._host = split_address(site.connection.address)[0]
        self._ca = site.path(site.connection.ca)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reach", daemon=True)
        self.connected = False
        self.problem = "the coordinator has not answered yet"
        self.clock_problem = ""

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
            hello = say_hello(self._url, self._ca.read_bytes())
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
        # An answer that was long under way looks like a clock that is ahead: this explains only
        # why the coordinator turns a site down.
        ahead_s = hello.ahead_s or 0.0
        is_wrong = is_clock_refused(ahead_s)
        self.clock_problem = f"the clock is {explain_clock(ahead_s)}" if is_wrong else ""
        is_well = hello.status == httpx.codes.OK
        return "" if is_well else f"the coordinator answers {hello.status}"
