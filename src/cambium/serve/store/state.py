"""The state folder: its lock, its database, its blobs.

`DIR/lock`, `DIR/cambium.db` (SQLite: WAL, synchronous=FULL, foreign keys on) and `DIR/blobs`. With
PostgreSQL the rows are there, `DIR/database.url` says where, the rest stays in the folder, and
several processes may have both open at once.
A transaction that has ended without an error survives `kill -9` and power loss.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType

from sqlalchemy import Connection, Engine

from cambium.core.errors import CambiumError, ConfigError
from cambium.serve.errors import StateLocked
from cambium.serve.store.blobs import BlobStore
from cambium.serve.store.database import (
    has_schema,
    migrate,
    open_engine,
    require_current_schema,
)
from cambium.serve.store.durable import make_durable_folder
from cambium.serve.store.failures import known_errors, told_why
from cambium.serve.store.folder_lock import FolderLock
from cambium.serve.store.membership import Membership
from cambium.serve.store.moving import DATABASE_FILE, chosen_database, move, put_away, remember
from cambium.serve.store.postgres import alone_at_opening, check_durable
from cambium.serve.store.transaction import Transaction
from cambium.serve.store.writing import for_writing


class State:
    """An open state folder; safe for threads and, on PostgreSQL, for processes: one writes.

    Open it with `State.open`, close it with `close` or by leaving a `with` block.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        blobs: BlobStore,
        lock: FolderLock | None,
    ) -> None:
        self.blobs = blobs
        self._engine = engine
        self._lock = lock
        self._membership: Membership | None = None
        self._closed = False
        self._writing = threading.Lock()
        self._writer: int | None = None

    @classmethod
    def open(
        cls, folder: Path, *, url: str | None = None, exclusive: bool = True, address: str = ""
    ) -> State:
        """Opens a state folder, which is made if it is not there.

        Args:
            url: `sqlite:///PATH` or `postgresql://…` of a database elsewhere, which the folder
                then belongs to; an empty one takes over what the folder's own file holds. None
                for where the folder belongs: `DIR/cambium.db` at first.
            exclusive: False opens a state that is there, perhaps in another process's hands,
                for reading only.
            address: where this process can be asked, told to those who ask another one.

        Raises:
            StateLocked: another process, named in the message, holds the folder, and the database
                is not one to share; or processes that opened it before this one took too long.
            ConfigError: the folder or the URL cannot be used, or another version wrote it.
            StateCorrupt: the database is damaged.
            StorageFull: there is no room for the first files.
            StateUnreachable: the database does not answer.
        """
        database = chosen_database(folder, url)
        if not exclusive:
            is_file = database.get_backend_name() == "sqlite"
            if is_file and not Path(str(database.database)).is_file():
                raise ConfigError(f"there is no state in {folder}", mend="start a server on it")
            with told_why():
                return cls._opened(open_engine(database), folder=folder, lock=None)
        engine = open_engine(database)
        alone = alone_at_opening(engine) if _can_share(engine) else nullcontext()
        with told_why(), known_errors(), alone:
            try:
                make_durable_folder(folder)
                # What the folder's own file holds is moved by one process alone.
                shared = _can_share(engine) and not (folder / DATABASE_FILE).is_file()
                lock = FolderLock(folder, shared=shared)
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise ConfigError(
                    f"{folder} cannot hold a state ({error.strerror})", mend="name another folder"
                ) from error
            try:
                if chosen_database(folder, url) != database:
                    raise StateLocked("the state has just moved to another database",
                                      mend="start again")  # fmt: skip
                return cls._opened(engine, folder=folder, lock=lock, address=address)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def _opened(
        cls, engine: Engine, *, folder: Path, lock: FolderLock | None, address: str = ""
    ) -> State:
        state = cls(engine, blobs=BlobStore(folder / "blobs"), lock=lock)
        try:
            if lock is None:
                with state._connection_for_reading() as connection:
                    require_current_schema(connection)
                return state
            with state._connection_for_writing() as connection:
                if _can_share(engine):
                    check_durable(connection)
                fresh = not has_schema(connection)
                migrate(connection)
                elsewhere = engine.url.database != str(folder / DATABASE_FILE)
                if elsewhere:
                    move(folder, connection, fresh=fresh)
                    # Before the commit: a crash in between finds the file again.
                    remember(folder, engine.url)
            if elsewhere:
                put_away(folder)
            if _can_share(engine):
                lock.share()
                with known_errors():
                    state._membership = Membership(engine, address=address)
            state.blobs.delete_partial(is_alone=not state.is_shared)
        except BaseException:
            state._dispose()
            raise
        return state

    @property
    def is_shared(self) -> bool:
        """Returns whether other processes may have this state open too."""
        return self._membership is not None

    @property
    def process(self) -> str | None:
        """Returns this process's id among those that share the state; None of one that is alone.

        Another one, once the process was taken for dead: nothing that it held is its own then.
        """
        return self._membership.id if self._membership else None

    @property
    def is_current(self) -> bool:
        """Returns whether this process still counts among those that share the state."""
        return self._membership is None or self._membership.is_current

    @property
    def num_taken_over(self) -> int:
        """Returns how many dead processes this one has found; what they held is free."""
        return self._membership.num_taken_over if self._membership else 0

    def owns(self, process: str | None) -> bool:
        """Returns whether what `process` holds is this process's, as far as it knows."""
        return self._membership is None or (process == self.process and self.is_current)

    def note_obeyed(self, obeyed: bool) -> None:
        """Tells whoever ordered the kill from outside that it is in force here."""
        if self._lock is not None:
            self._lock.note(obeyed=obeyed)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Gives the one writer: commits at the end, and changes nothing if an error leaves it.

        Raises:
            StorageFull: the disk took no more; nothing was changed.
            StateLocked: the state was opened for reading only, another process is writing, or
                the others took this process for dead.
            DataError: a row contradicts a key or a reference.
            CambiumError: this thread is in a transaction already, or the state is closed.
        """
        if self._lock is None:
            raise StateLocked("the state is open for reading only", mend="ask the server to write")
        with self._connection_for_writing() as connection:
            tx = Transaction(connection, blobs=self.blobs)
            self._check_membership(tx)
            yield tx

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Gives one unchanging view of the state; it waits for no writer and refuses to write."""
        with self._connection_for_reading() as connection:
            yield Transaction(connection, blobs=self.blobs)

    def sweep_blobs(self, *, grace_s: float = 60.0) -> int:
        """Deletes the blobs that no row names and returns how many.

        No writer can name one of them meanwhile. What this process put in the last `grace_s`
        seconds stays: the row that names it may be about to be written.
        """
        with self.transaction() as transaction:
            return self.blobs.delete_unreferenced(transaction.blobs_named(), grace_s=grace_s)

    def close(self) -> None:
        """Waits for the writer, closes the database and lets the next process in."""
        with self._writing:
            if not self._closed:
                self._closed = True
                self._dispose()
                if self._lock is not None:
                    self._lock.release()

    def __enter__(self) -> State:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _connection_for_writing(self) -> Iterator[Connection]:
        if self._writer == threading.get_ident():
            raise CambiumError(
                "this thread is in a transaction already", mend="write in the outer transaction"
            )
        with self._writing:
            self._refuse_if_closed()
            self._writer = threading.get_ident()
            try:
                with (
                    known_errors(),
                    self._engine.connect() as connection,
                    for_writing(connection).begin(),
                ):
                    yield connection
            finally:
                self._writer = None

    @contextmanager
    def _connection_for_reading(self) -> Iterator[Connection]:
        self._refuse_if_closed()
        with known_errors(), self._engine.connect() as connection, connection.begin() as view:
            yield connection
            view.rollback()

    def _dispose(self) -> None:
        if self._membership is not None:
            self._membership.close()
        self._engine.dispose()

    def _check_membership(self, tx: Transaction) -> None:
        """Refuses to write once the others may have taken over what this process holds."""
        if self._membership is not None and tx.find_process(self._membership.id) is None:
            raise StateLocked("the other processes took this one for dead",
                              mend="wait until it has joined them again")  # fmt: skip

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise CambiumError("the state is closed", mend="open it again")


def _can_share(engine: Engine) -> bool:
    return engine.dialect.name != "sqlite"
