"""A PeerId is an Ed25519 public key; an Identity holds the private half."""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from lattica.errors import IdentityError, KeyFileError

PEER_ID_BYTES = 32
_HEADER = "lattica-ed25519:"


class PeerId:
    """An Ed25519 public key, 32 bytes. Text form: base32, lower case, no padding."""

    __slots__ = ("_hash", "raw")

    raw: bytes

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PEER_ID_BYTES:
            raise ValueError(f"a PeerId is {PEER_ID_BYTES} bytes, not {len(raw)}")
        self.raw = bytes(raw)
        self._hash = hash(self.raw)

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Read the text form.

        Raises:
            IdentityError: `text` is not a PeerId.
        """
        text = text.strip().lower()
        padded = text.upper() + "=" * (-len(text) % 8)
        try:
            peer = cls(base64.b32decode(padded))
        except ValueError as error:
            raise IdentityError(f"{text!r} is not a PeerId: {error}") from None
        if str(peer) != text:  # the last character has bits to spare
            raise IdentityError(f"{text!r} is not a PeerId: its last character is wrong")
        return peer

    @property
    def short(self) -> str:
        """The first eight characters: what people read in tables and logs."""
        return str(self)[:8]

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def __str__(self) -> str:
        return base64.b32encode(self.raw).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return f"PeerId({self.short})"

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PeerId) and self.raw == other.raw

    def __lt__(self, other: PeerId) -> bool:
        return self.raw < other.raw

    def __reduce__(self) -> tuple[type[PeerId], tuple[bytes]]:
        return PeerId, (self.raw,)


class Identity:
    """A private key and the PeerId it proves. Never pickled, never printed."""

    def __init__(self, seed: bytes) -> None:
        """`seed` is the 32-byte Ed25519 private key (RFC 8032)."""
        if len(seed) != PEER_ID_BYTES:
            raise KeyFileError(f"an Ed25519 seed is {PEER_ID_BYTES} bytes, not {len(seed)}")
        self._seed = bytes(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.peer_id = PeerId(
            self._key.public_key().public_bytes(
                serialization.Encoding.Raw, serialization.PublicFormat.Raw
            )
        )

    @classmethod
    def generate(cls) -> Identity:
        """A new random identity."""
        return cls(os.urandom(PEER_ID_BYTES))

    @property
    def seed(self) -> bytes:
        """The private seed, for tickets and key files only."""
        return self._seed

    def sign_bytes(self, message: bytes) -> bytes:
        """The 64-byte signature over `message`. Prefer `Signed.seal`, which separates domains."""
        return self._key.sign(message)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file.

        Raises:
            KeyFileError: missing, malformed, or readable by others.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read the key file {path}: {error}") from None
        if mode & 0o077:
            raise KeyFileError(
                f"the key file {path} can be read by others (mode {mode:04o}); "
                f"run: chmod 600 {path}"
            )
        try:
            if not text.startswith(_HEADER):
                raise ValueError("wrong header")
            return cls(base64.b64decode(text[len(_HEADER) :], validate=True))
        except (ValueError, KeyFileError) as error:
            raise KeyFileError(
                f"{path} is not a Lattica key file ({error}); move it away to get a new identity"
            ) from None

    def save(self, path: Path) -> None:
        """Write a new key file with mode 0600, never visible half-written.

        Raises:
            KeyFileError: the file cannot be written, or exists: a key is never replaced.
        """
        text = _HEADER + base64.b64encode(self._seed).decode() + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd, temporary = tempfile.mkstemp(dir=path.parent)  # created with mode 0600
            try:
                with os.fdopen(fd, "w") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(temporary, path)  # unlike a rename, fails if `path` exists
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        except FileExistsError:
            raise KeyFileError(f"{path} exists; move it away to get a new identity") from None
        except OSError as error:
            raise KeyFileError(f"cannot write the key file {path}: {error}") from None

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key file, or make one if there is none.

        Raises:
            KeyFileError: see `load` and `save`.
        """
        if not os.path.lexists(path):
            identity = cls.generate()
            try:
                identity.save(path)
            except KeyFileError:
                if not os.path.lexists(path):
                    raise
                # Another process has made one at the same moment: that one counts.
        return cls.load(path)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id.short})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a private key is never pickled")
