"""What happens inside one transaction, each verb written once, as a script of requests.

`accept` for events, `runs` for the life of a run, `claim` for what a node may take, `pieces` for pieces,
`notifications` for what people are to be told. Lock order, always: digests, event ids, slots (sorted), runs (sorted).
A verb reads what it only peeked at again once it has the locks.
"""
