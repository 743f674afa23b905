"""A model server with faults, for tests of whatever asks a server: nothing is downloaded, and no model runs.

    from sinterlm.testing import serve_faults

    with serve_faults({"server-error": 0.1, "reset": 0.05}, limit=16) as server:
        ...  # ask server.url
        print(server.stats())

docs/testing-servers.md tells what it can do.
"""

from sinterlm.testing.faults import FAULTS, Behaviour, FaultServer, Stats, serve_faults

__all__ = ["FAULTS", "Behaviour", "FaultServer", "Stats", "serve_faults"]
