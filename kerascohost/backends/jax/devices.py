"""The arrays of a stack on one device, or spread by member over several devices of this machine."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kerascohost.backends.base import Tensor

_AXIS = "members"


class Placement:
    """Puts arrays of a stack on devices: each device has the rows of some members.

    The compiled step is the same on one device and on several: JAX runs it where its data is. As
    each device has equally many rows, copies of the first member are added. Each device has two
    rows or more of several members: XLA compiles a single row in another way, and the last bits
    would differ.

    Args:
        devices: The devices; with none or one, arrays are where JAX puts them by itself.
        members: The number of members.

    Attributes:
        is_spread: Whether there are several devices.
        rows: The number of rows, those of copies included.
    """

    def __init__(self, devices: Sequence[jax.Device], members: int):
        self.is_spread = len(devices) > 1
        self._members = members
        self._devices = list(devices)
        count = max(1, len(devices))
        least = 2 if self.is_spread and members > 1 else 1
        self.rows = max(least, -(-members // count)) * count
        self._copies: dict[int, tuple[jax.Array, jax.Array]] = {}

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self._devices), (_AXIS,))

    def with_copies(self, rows: Sequence[int]) -> list[int]:
        """Returns the rows of all members, with those that are copies of the first one."""
        return [*rows, *[rows[0]] * (self.rows - self._members)]

    def by_member(self, array: Tensor, axis: int = 0) -> jax.Array:
        """Returns an array whose `axis` counts rows of the stack, spread over the devices."""
        if not self.is_spread:
            return array
        spec = PartitionSpec(*[None] * axis, _AXIS)
        return jax.device_put(array, NamedSharding(self._mesh, spec))

    def everywhere(self, array: Tensor) -> jax.Array:
        """Returns a copy of an array on each device, the same one until `release`."""
        if not self.is_spread:
            return array
        if id(array) not in self._copies:
            copy = jax.device_put(array, NamedSharding(self._mesh, PartitionSpec()))
            self._copies[id(array)] = (array, copy)
        return self._copies[id(array)][1]

    def on_one(self, array: Tensor) -> jax.Array:
        """Returns an array on one device, for steps of some of the members."""
        return jax.device_put(array, self._devices[0]) if self.is_spread else array

    def release(self) -> None:
        """Releases the copies."""
        self._copies.clear()


def check_devices(devices: Sequence[jax.Device]) -> str | None:
    """Returns what is wrong with the devices of a stack, or `None`."""
    if not devices:
        return "Expected one device or more, or `devices=None`. Received: none."
    strange = [device for device in devices if not isinstance(device, jax.Device)]
    if strange:
        return (
            f"Expected devices of JAX, as `jax.devices()` returns them. Received: {strange[0]!r}."
        )
    if len(set(devices)) < len(devices):
        return "Expected different devices. Received: the same one twice."
    elsewhere = [one for one in devices if one.process_index != jax.process_index()]
    if elsewhere:
        return (
            f"Expected devices of this process. Received: {elsewhere[0]!r} of another one; to "
            "train on several machines use `workers=kc.RayWorkers(...)`."
        )
    return None
