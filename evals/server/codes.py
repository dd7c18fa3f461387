"""Codes of errors that several modules of this package raise."""

from __future__ import annotations

from qpack.core.problems import Code

SERVER_ANSWER = Code("server-answer", "An answer of a server can't be used.")
SERVER_STATUS = Code("server-status", "A server answered with an HTTP error.")
NO_RESPONSE = Code("no-response", "A server can't be reached, doesn't answer, or the connection broke.")
NOT_A_SERVER = Code("not-a-server", "An address doesn't answer as an OpenAI server or vLLM does.")
OTHER_MODEL = Code("other-model", "A server serves another model.")
SERVER_ENDED = Code("server-ended", "vLLM exited.")
