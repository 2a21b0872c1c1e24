"""One owner of everything that is exchanged in foreign libraries while a training step is traced.

A trace plays a GPU to torch, transformers, peft, bitsandbytes, triton and Liger by exchanging some of their functions
and by emptying some of their caches. All of it goes through a :class:`Guard`, which

- lets one thread at a time do so: a trace in another thread waits until this one has given everything back;
- gives back everything, also what was not there before, in the reverse order, whatever happens inside;
- acts, where a function is exchanged (:meth:`Guard.exchange_here`), in the thread that asked for it only: whoever
  else works with torch meanwhile meets the real function;
- says which library has moved on, where a name is not there or is called with other arguments
  (:class:`fitplan.errors.LibraryMoved`).

What cannot be told apart by thread, because it is no function that is called, is exchanged for all
(:meth:`Guard.exchange`): caches of bitsandbytes, classes of a model to which Liger is applied, ``flash_attn`` in
``sys.modules``.
"""

import threading
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from functools import wraps
from types import ModuleType
from typing import Any, Self

from fitplan.faults import library_of, moved

_LOCK = threading.RLock()
_ABSENT: Any = object()


class Guard(ExitStack):
    """Inside, the libraries are exchanged as this guard is told; after it they are as they were.

    A guard inside another one of the same thread gives back what it exchanged itself.
    """

    def __enter__(self) -> Self:
        _LOCK.acquire()
        self.callback(_LOCK.release)
        return super().__enter__()

    def exchange(self, holder: Any, name: str, value: Any) -> None:
        """Put ``value`` in the place of an attribute of a module or class, for every thread.

        Raises:
            LibraryMoved: there is no such attribute.

        """
        _there(holder, name)
        self.put(holder, name, value)

    def exchange_here(self, holder: Any, name: str, stand_in: Callable[..., Any]) -> None:
        """Put ``stand_in`` in the place of a function of a module or class, for calls by this thread.

        Raises:
            LibraryMoved: there is no such function; or, when it is called, the library passes it what it did not.

        """
        self.exchange(holder, name, _for_this_thread(holder, name, stand_in))

    def put(self, holder: Any, name: str, value: Any) -> None:
        """Put an attribute of a module or class, whether there is one or not, for every thread."""
        self.callback(_give_back, holder, name, vars(holder).get(name, _ABSENT))
        setattr(holder, name, value)

    def put_item(self, holder: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Put an entry of a mapping, whether there is one or not."""
        self.keep_item(holder, key)
        holder[key] = value

    def keep_item(self, holder: MutableMapping[Any, Any], key: Any) -> None:
        """Give an entry of a mapping back as it is now, or take it out if there is none now."""
        self.callback(_give_back_item, holder, key, holder.get(key, _ABSENT))

    def empty(self, cache: MutableMapping[Any, Any]) -> None:
        """Empty a mapping, and give its content back."""
        self.callback(_refill, cache, dict(cache))
        cache.clear()

    def discard(self, names: set[Any], name: Any) -> None:
        """Take a name out of a set, and put it back."""
        if name in names:
            self.callback(names.add, name)
            names.discard(name)

    def keep(self, holder: Any) -> None:
        """Give back all attributes of a module or class as they are now; what is new then goes."""
        self.callback(_give_back_all, holder, dict(vars(holder)))

    def keep_module(self, module: ModuleType) -> None:
        """Give back all attributes of a module, and of the classes that it defines."""
        self.keep(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                self.keep(value)


def _there(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name)
    except AttributeError as error:
        raise moved(library_of(holder), f"{_named(holder)} has no {name}") from error


def _for_this_thread(holder: Any, name: str, stand_in: Callable[..., Any]) -> Callable[..., Any]:
    real, thread = _there(holder, name), threading.get_ident()

    @wraps(real)
    def by_thread(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return real(*args, **kwargs)
        try:
            return stand_in(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the call did not get in
                raise moved(library_of(holder), f"{_named(holder)}.{name} is called otherwise: {error}") from error
            raise

    return by_thread


def _give_back(holder: Any, name: str, value: Any) -> None:
    if value is not _ABSENT:
        setattr(holder, name, value)
    elif name in vars(holder):
        delattr(holder, name)


def _give_back_item(holder: MutableMapping[Any, Any], key: Any, value: Any) -> None:
    if value is not _ABSENT:
        holder[key] = value
    else:
        holder.pop(key, None)


def _refill(cache: MutableMapping[Any, Any], content: dict[Any, Any]) -> None:
    cache.clear()
    cache.update(content)


def _give_back_all(holder: Any, before: dict[str, Any]) -> None:
    for name in {**before, **vars(holder)}:
        value = before.get(name, _ABSENT)
        if vars(holder).get(name, _ABSENT) is not value:
            _give_back(holder, name, value)


def _named(holder: Any) -> str:
    return str(getattr(holder, "__qualname__", None) or getattr(holder, "__name__", None) or type(holder).__qualname__)
