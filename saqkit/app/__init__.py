"""The reference application: announce, fan out, notify a batch, over a ledger."""
