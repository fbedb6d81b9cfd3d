"""ONNX graphs: read, write without chance bytes, rename, prune, and walk through subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeops.compiler.passes import refuse

MODEL_NAME = "model.onnx"
OWN_PREFIX = "edgeops/"
MAX_PROTOBUF_BYTES = (2 << 30) - 1


def load(folder: Path, name: str = MODEL_NAME) -> Any:
    """Return the model of a folder as a protobuf, with its external data."""
    import onnx

    return onnx.load(folder / name)


def save(model: Any, folder: Path, name: str = MODEL_NAME) -> None:
    """Write a model in one file; the same graph gives the same bytes.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; larger than a protobuf may be.
    """
    strip(model)
    if model.ByteSize() > MAX_PROTOBUF_BYTES:
        raise refuse(f"the model takes {model.ByteSize()} bytes, one ONNX file holds {MAX_PROTOBUF_BYTES}")
    (folder / name).write_bytes(model.SerializeToString(deterministic=True))


def strip(model: Any) -> None:
    """Drop what only a reader of the exporter's log needs: documentation, producer, metadata."""
    for field in ("doc_string", "producer_name", "producer_version", "metadata_props"):
        model.ClearField(field)
    for graph in graphs(model.graph):
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")


def graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def opset(model: Any, domain: str = "") -> int:
    """Return the version of a domain's operators, 0 if the model uses none."""
    names = ("", "ai.onnx") if domain == "" else (domain,)
    return max((entry.version for entry in model.opset_import if entry.domain in names), default=0)


def tensor_names(graph: Any) -> set[str]:
    """Return the names of all tensors of a graph and the graphs inside."""
    names = set()
    for inner in graphs(graph):
        names |= {item.name for item in (*inner.input, *inner.output, *inner.initializer)}
        for node in inner.node:
            names.update(node.input)
            names.update(node.output)
    return names - {""}


def rename_tensors(graph: Any, new_name: Callable[[str], str]) -> None:
    """Rename tensors everywhere: definitions, uses and descriptions, in the graphs inside too."""
    for inner in graphs(graph):
        for item in (*inner.input, *inner.output, *inner.initializer, *inner.value_info):
            item.name = new_name(item.name)
        for node in inner.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name:
                        names[index] = new_name(name)


def prune(graph: Any, outputs: Sequence[str]) -> None:
    """Keep only the named outputs, in this order, and the nodes and initializers that they need."""
    by_name = {item.name: item for item in graph.output}
    kept = [by_name[name] for name in outputs]
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del graph.output[:]
    graph.output.extend(copies)
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_uses(node))
    for items in (graph.initializer, graph.sparse_initializer):
        kept_items = [
            item for item in items if getattr(item, "name", None) in needed or items is graph.sparse_initializer
        ]
        del items[:]
        items.extend(kept_items)
    kept_nodes = list(reversed(nodes))
    del graph.node[:]
    graph.node.extend(kept_nodes)


def _uses(node: Any) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names |= tensor_names(inner)
    return names - {""}


def static_shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a described tensor, or None where a size is open."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    sizes = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    return sizes if all(size > 0 for size in sizes) else None


def dtype(value: Any) -> str:
    """Return the numpy name of a described tensor's type."""
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)
