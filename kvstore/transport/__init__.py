"""How blocks get from one process's pages into another's.

``opening`` makes a rank's ``shipper`` or ``fetcher``: a thread that joins the state machine of its
side (:mod:`kvstore.sending`, :mod:`kvstore.receiving`) to one of the two ``ends`` of a transport.
Which transport it is, the address says:

    =================  ===========================================================================
    ``zmq+ipc:///p``   frames through a Unix socket
    ``zmq+tcp://h:n``  frames over TCP, encrypted; or in the clear on a plain connection beside
    ``shm:///p``       one host: the receiver reads the sender's pages in its memory (``neighbour``)
    ``auto://…``       the fastest of these that both ends share
    =================  ===========================================================================

``sockets`` and ``curve`` say who may connect to whom, ``digests`` what tells a block that arrived
from one that was sent. Nothing here knows an engine.
"""
