"""How a process that is no node reaches the store: through the node that has the file, or in a transaction of its own.

A store file belongs to one process. A client of it asks that one over the link, under the names that a node has, and
gets the same values and errors. Whatever has an effect is named before it is sent, so that it can be asked again of the
node's successor when the answer was lost: the second time it is a duplicate. Read `node_link` first (`NodeLink.ask`),
then `doors`: what `app.runtime`, `app.pieces` and `app.publish` are over there.

On PostgreSQL a client has a store of its own and needs none of this; there an event may also go along with somebody's
own transaction: `within`.
"""
