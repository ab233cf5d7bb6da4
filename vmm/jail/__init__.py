"""The jail of strato-vmm: what it sees of the host (`view`), and what it can still do (`lockdown`).

`view` is for whoever starts a strato-vmm (the shim, ``strato vm run``) as much as for strato-vmm itself;
importing it costs next to nothing.
"""
