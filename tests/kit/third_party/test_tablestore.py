"""All that this distribution has to write to run the whole store contract."""

from tablestore import TableStore

from kvreplay.testing import StoreContract


class TestTableStore(StoreContract):
    open = TableStore
