"""A newsroom on Piecework: two tenants' feeds become articles, an editor approves them, readers get mail.

Read `app` first: it is the whole application. `feeds` and `fetch` are what its piece needs, `opml` reads a list of
feeds. The rest is the stage around it, for `piecework demo`: `publisher` serves the bundled documents, `sink` takes
the mail in, `desk` watches and plays the editor, `view` shows it.
"""
