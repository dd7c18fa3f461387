"""Calibration passes: the model's own forward, stopped at every decoder layer.

Each row of the calibration data is a forward pass of the whole model in a thread of its own. At a decoder layer the
pass stops and hands over what the layer was called with; the layer runs in the caller's thread, and the pass resumes
with its output. So a layer gets what the model gives it (masks, positions, states shared between layers), whatever
the model's code does on the way, and nothing is traced or assumed about it.

Threads don't compete: one runs at a time, from one stop to the next.
"""

import contextlib
import functools
import threading

import torch

_LARGE = 1 << 20  # bytes; smaller tensors stay where they are
_STAYING = ("cpu",)  # kinds of devices whose tensors are on the host already


class PassFailed(RuntimeError):
    """The model's forward pass raised an error; `__cause__` is that error."""


class _Abandoned(BaseException):
    """Ends the thread of a pass that nobody waits for any more. No `except Exception` of a model catches it."""


class _Pass:
    """The pass of one row. `layer` is where it stands, None before the first layer and after the last one."""

    def __init__(self, passes, inputs):
        self.passes, self.inputs = passes, inputs
        self.layer, self.arguments, self.output = None, None, None
        self.error, self.ended, self.abandoned = None, False, False
        self.resume, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.parked = []

    def _run(self):
        self.resume.acquire()
        self.passes.here.row = self
        try:
            # Every thread that uses OpenMP gets a pool of threads, which it keeps: none but the caller needs one.
            torch.set_num_threads(1)
            if not self.abandoned:
                with torch.no_grad():
                    self.passes.model(**self.inputs)
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        self.layer, self.arguments, self.ended = None, None, True
        self.stopped.release()

    def stop(self, layer, args, kwargs):
        """Called in the row's thread: hand the call over, and wait for its output."""
        self.layer, self.arguments = layer, (args, kwargs)
        self.stopped.release()
        self.resume.acquire()
        if self.abandoned:
            raise _Abandoned
        output, self.output, self.arguments = self.output, None, None
        return output

    def go(self):
        """Run to the next layer, or to the end. Raises PassFailed."""
        self.unpark()
        self.resume.release()
        self.stopped.acquire()
        if self.error is not None:
            what = f"the model's forward pass failed: {type(self.error).__name__}: {self.error}"
            raise PassFailed(what) from self.error
        self.park()

    def park(self):
        """Move what the layer gets to the host while other rows compute: on a GPU only their own row needs it there."""
        for tensor in _tensors(self.arguments):
            storage = tensor.untyped_storage()
            if tensor.device.type in _STAYING or storage.nbytes() < _LARGE or storage.data_ptr() in self.passes.fixed:
                continue
            # The storage, not the tensor: the model's own variables are other views of it.
            kept = torch.UntypedStorage(storage.nbytes())
            kept.copy_(storage)
            self.parked.append((storage, kept, storage.nbytes()))
            storage.resize_(0)

    def unpark(self):
        """Back to the device."""
        for storage, kept, size in self.parked:
            storage.resize_(size)
            storage.copy_(kept)
        self.parked.clear()


class Passes:
    """All rows' passes through `model`, and the decoder layers (in `layers`, by name) where they stop.

    Use as a context; `advance` and `run` in turn, until there is no next layer.
    """

    def __init__(self, model, layers, rows):
        self.model, self.layers = model, dict(layers)
        self.here = threading.local()
        self.fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self.rows = [_Pass(self, inputs) for inputs in rows]
        self._forwards = {}

    def __enter__(self):
        threads = torch.get_num_threads()
        for layer in self.layers.values():
            self._forwards[layer] = (layer.__dict__.get("forward"), layer.forward)
            layer.forward = self._stopping(layer, layer.forward)
        for row in self.rows:
            row.thread.start()
        self._threads = threads
        return self

    def __exit__(self, *_):
        for row in self.rows:
            if not row.ended:
                row.abandoned = True
                row.resume.release()
        for row in self.rows:
            row.thread.join()
        for layer, (own, _) in self._forwards.items():
            if own is None:
                del layer.forward
            else:
                layer.forward = own
        # What the rows' threads have set is also what threads to come would begin with.
        torch.set_num_threads(self._threads)

    def _stopping(self, layer, forward):
        @functools.wraps(forward)
        def stopping(*args, **kwargs):
            row = getattr(self.here, "row", None)
            return forward(*args, **kwargs) if row is None else row.stop(layer, args, kwargs)

        return stopping

    def advance(self):
        """Take every row to its next layer. Returns that layer, None where the passes have ended."""
        for row in self.rows:
            row.go()
        places = {id(row.layer): row.layer for row in self.rows}
        if len(places) > 1:
            raise PassFailed("rows take different ways through the model's layers")
        (layer,) = places.values()
        return layer

    def arguments(self, number):
        """What row `number` calls its layer with, (args, kwargs), on its device."""
        row = self.rows[number]
        row.unpark()
        return row.arguments

    def run(self, layer, keep):
        """Run the layer where all rows stand, with each row's own arguments; `keep` its outputs for the model."""
        copying = not keep
        with torch.no_grad(), self.running(layer):
            for number, row in enumerate(self.rows):
                # What is moved away again may be kept by a hook (AWQ runs layers again): it gets copies.
                copies = not keep and (copying or bool(row.parked))
                row.unpark()
                args, kwargs = row.arguments if keep else copied(row.arguments, tensors=copies)
                before = [tensor._version for tensor in _tensors((args, kwargs))]
                output = layer(*args, **kwargs)
                if keep:
                    row.output = output
                else:
                    row.park()
                # A layer that writes into what it gets would find other values when it runs again.
                copying = copying and before != [tensor._version for tensor in _tensors((args, kwargs))]
                yield number

    @contextlib.contextmanager
    def running(self, layer):
        """Within it the layer runs when it is called, and doesn't stop."""
        stopping, layer.forward = layer.forward, self._forwards[layer][1]
        try:
            yield
        finally:
            layer.forward = stopping


def _tensors(value):
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def copied(value, *, tensors=True):
    """The same in containers of its own, with copies of all tensors or with the same ones."""
    if isinstance(value, torch.Tensor):
        return value.clone() if tensors else value
    if type(value) is dict:
        return {key: copied(each, tensors=tensors) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(copied(each, tensors=tensors) for each in value)
    return value


def decoder_layers(model, wanted):
    """The layers that passes stop at, by name: members of outermost lists of modules that hold a module of `wanted`."""
    found = {}
    lists = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    outermost = [name for name in lists if not any(name.startswith(other + ".") for other in lists)]
    for name in outermost:
        for number, layer in model.get_submodule(name).named_children():
            if any(f"{name}.{number}.{inside}" in wanted for inside, _ in layer.named_modules()):
                found[f"{name}.{number}"] = layer
    return found
