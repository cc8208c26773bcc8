"""The door: who may come in, how often, for how much of a device, and what every answer says to browsers.

settings.py      the section ``access:`` of the configuration; everything is off by default
keys.py          API keys, and which client a request comes from
key_file.py      the file that holds the keys' hashes; read again when it changes
address.py       a client's address, also behind proxies
rate.py quota.py     laws of two limits: requests a minute, device seconds in a window
limiter.py       all limits of all clients, in one process
shared.py        one limiter for all ingress replicas (the only module here that knows Ray)
gate.py          the ASGI middleware that asks them
metered.py       what a picture will take, and took, of a device
browser.py       headers for browsers; other sites' pages
command.py       ``likeness keys``
"""
