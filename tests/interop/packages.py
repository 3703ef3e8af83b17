"""The side of the reference packages: gguf, safetensors, compressed-tensors, bitsandbytes.

packages.py write ROOT    files that the packages write, beside those of nibble
packages.py compare ROOT  all files below ROOT as the packages read them, against the dumps that exchange.cpp made

Values are equal as float32, bit for bit, but -0 and 0 are the same. Where a package decodes to bfloat16 only, ours are
rounded to it. GPTQ has no package for CPUs here; its definition stands below.
"""

import json
import logging
import os
import pathlib
import sys
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import safetensors
import safetensors.torch
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter, FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

Type = gguf.GGMLQuantizationType
failures = 0
agreed = 0


def check(what, ok, why=""):
    global failures, agreed
    agreed += bool(ok)
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}{'' if ok else ': ' + str(why)}")


def compare(what, ours, theirs):
    """float32 arrays, or a bfloat16 tensor to which ours are rounded"""
    if isinstance(theirs, torch.Tensor):
        if theirs.dtype == torch.bfloat16:
            ours = torch.from_numpy(ours.copy()).to(torch.bfloat16).float().numpy()
        theirs = theirs.float().numpy()
    theirs = np.ascontiguousarray(theirs, dtype=np.float32)
    if ours.size != theirs.size:
        return check(what, False, f"{ours.size} values, the package has {theirs.size}")
    ours, theirs = ours.reshape(-1), theirs.reshape(-1)
    bad = np.flatnonzero(ours != theirs)  # NaN is unequal, too
    check(what, bad.size == 0, bad.size and f"{bad.size} of {ours.size} values differ, value {bad[0]} is {ours[bad[0]]!r}, the package has {theirs[bad[0]]!r}")


def weights(rows, cols, seed):
    random = np.random.default_rng(seed)
    w = random.normal(size=(rows, cols)) * np.where(np.arange(rows) % 5 == 4, 10.0, 0.02)[:, None]
    w[random.random(w.shape) < 0.01] *= 8
    w[2] = 0
    w[3] = 0.75
    return w.astype(np.float32)


# --- GGUF -----------------------------------------------------------------------------------------------------------

PLAIN = {np.dtype(t).char: t for t in (np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64)}


def write_gguf(folder):
    w = weights(24, 512, 1)
    random = np.random.default_rng(2)
    for kind, traits in gguf.quants._type_traits.items():
        writer = gguf.GGUFWriter(folder / f"package_{kind.name}.gguf", "interop")
        writer.add_uint32("interop.number", 7)
        try:
            data = gguf.quants.quantize(w, kind)
            writer.add_tensor("quantized", data, raw_dtype=kind)
        except NotImplementedError:
            pass
        if kind == Type.BF16:
            data = (random.normal(size=(24, 512)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:  # random bytes, without blocks of NaN, Inf and, in NVFP4, scales with a sign, which mean nothing
            elements, size = gguf.GGML_QUANT_SIZES[kind]
            data = random.integers(0, 256, (24 * 512 // elements, size), dtype=np.uint8)
            if kind == Type.NVFP4:
                data[:, :4] &= 0x7F
            for _ in range(1000):
                with np.errstate(all="ignore"):
                    bad = ~np.isfinite(gguf.quants.dequantize(data, kind)).all(axis=-1)
                if kind == Type.MXFP4:
                    bad |= data[:, 0] == 0xFF
                if not bad.any():
                    break
                data[bad] = random.integers(0, 256, (bad.sum(), size), dtype=np.uint8)
                if kind == Type.NVFP4:
                    data[bad, :4] &= 0x7F
            data = data.reshape(24, -1)
        writer.add_tensor("bytes", data, raw_dtype=kind)
        finish(writer)
    writer = gguf.GGUFWriter(folder / "package_plain.gguf", "interop")
    writer.add_custom_alignment(128)
    for name, add, value in (
        ("u8", writer.add_uint8, 200), ("i8", writer.add_int8, -100), ("u16", writer.add_uint16, 60000), ("i16", writer.add_int16, -30000),
        ("u32", writer.add_uint32, 4000000000), ("i32", writer.add_int32, -2000000000), ("u64", writer.add_uint64, 18 * 10**18),
        ("i64", writer.add_int64, -9 * 10**18), ("f32", writer.add_float32, 0.1), ("f64", writer.add_float64, 0.1),
        ("yes", writer.add_bool, True), ("text", writer.add_string, "é \"\\\n"), ("ints", writer.add_array, [1, -2, 3]),
        ("floats", writer.add_array, [0.5, -0.1]), ("texts", writer.add_array, ["a", "", "€"])):
        add("interop." + name, value)
    for i, dtype in enumerate(PLAIN.values()):
        writer.add_tensor(f"t{i}", (np.arange(30) * 1.25 - 17).reshape(2, 3, 1, 5).astype(dtype))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TYPE_NAMES = {"UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "UINT32": "u32", "INT32": "i32", "FLOAT32": "f32",
              "BOOL": "bool", "STRING": "text", "ARRAY": "array", "UINT64": "u64", "INT64": "i64", "FLOAT64": "f64"}
# Types of vectors from a codebook: nibble says that it does not decode them.
NOT_DECODED = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def compare_gguf(path, dump):
    kind = path.stem.split("_", 1)[1]
    if kind in NOT_DECODED:
        text = (dump / "refused.txt").read_text() if (dump / "refused.txt").exists() else ""
        return check(f"{path.name} is refused", kind in text, text or "it was not")
    if (dump / "refused.txt").exists():
        return check(path.name, False, (dump / "refused.txt").read_text())
    if kind == "Q1_0" and not hasattr(gguf.quants, "Q1_0"):
        return print(f"     {path.name}: gguf {gguf_version} does not decode the type")
    reader = gguf.GGUFReader(path)
    theirs = {f.name: {"type": TYPE_NAMES[f.types[0].name], "value": f.contents()}
              for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    ours = json.loads((dump / "metadata.json").read_text())
    check(f"{path.name} metadata", ours == theirs, f"{ours} but {theirs}")
    check(f"{path.name} tensors", sorted(t.name for t in reader.tensors) == sorted(p.stem for p in dump.glob("*.f32")), "other names")
    for t in reader.tensors:
        plain = t.tensor_type in (Type.F64, Type.I8, Type.I16, Type.I32, Type.I64)
        with np.errstate(all="ignore"):
            values = t.data.astype(np.float32) if plain else gguf.quants.dequantize(t.data, t.tensor_type)
        compare(f"{path.name} {t.name}", np.fromfile(dump / f"{t.name}.f32", np.float32), values)


# --- safetensors ----------------------------------------------------------------------------------------------------


def write_safetensors(folder):
    random = np.random.default_rng(3)
    tensors = {}
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
                  torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
                  torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.complex64):
        tensors[str(dtype)] = torch.from_numpy(random.integers(0, 2, 48, dtype=np.uint8)).view(dtype).reshape(2, -1)
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.zeros(3, 0)
    tensors["é \"\\\n"] = torch.ones(1)
    safetensors.torch.save_file(tensors, folder / "package_all.safetensors", {"€": "\"\\\n"})


def compare_safetensors(path, dump):
    if (dump / "refused.txt").exists():
        return check(path.name, False, (dump / "refused.txt").read_text())
    ours = json.loads((dump / "tensors.json").read_text())
    with safetensors.safe_open(path, "pt") as file:
        check(f"{path.name} metadata", (file.metadata() or {}) == ours["metadata"], f"{ours['metadata']} but {file.metadata()}")
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    check(f"{path.name} names", sorted(theirs) == sorted(t["name"] for t in ours["tensors"]), f"{sorted(theirs)}")
    for t in ours["tensors"]:
        right = theirs.get(t["name"], {})
        same = right.get("dtype") == t["dtype"] and right.get("shape") == t["shape"] and bytes(right.get("data", b"?")) == (dump / t["raw"]).read_bytes()
        check(f"{path.name} {t['name']!r} {t['dtype']}", same, f"{t} but {right.get('dtype')} {right.get('shape')}")


# --- checkpoints ----------------------------------------------------------------------------------------------------


def ct_scheme(config):
    group = next(iter(config["config_groups"].values()))
    return QuantizationScheme(targets=group["targets"], weights=QuantizationArgs(**group["weights"])), config["format"]


def widened(state):
    """scales in float32, which is exact, so that the package multiplies in it"""
    return {k: v.float() if k.endswith("scale") and v.dtype in (torch.bfloat16, torch.float16) else v for k, v in state.items()}


def decompress(layer, scheme, form):
    return BaseCompressor.get_value_from_registry(form).decompress(widened(layer), scheme)["weight"]


def gptq(layer, config):
    """AutoGPTQ's definition, in numpy. v1 stores z - 1: a subtraction from whole words, but field by field for 3 bits"""
    bits, v1 = config["bits"], config.get("checkpoint_format", "gptq") == "gptq"
    scales = layer["scales"].float().numpy()

    def fields(words, axis):  # a stream of bits along the axis
        u = np.moveaxis(words.numpy().view(np.uint32), axis, 0)
        bit = ((u[:, None] >> np.arange(32, dtype=np.uint32).reshape((1, 32) + (1,) * (u.ndim - 1))) & 1).reshape((-1, bits) + u.shape[1:])
        return np.moveaxis((bit.astype(np.int64) << np.arange(bits).reshape((1, bits) + (1,) * (u.ndim - 1))).sum(1), 0, axis)

    zeros = layer["qzeros"]
    if v1 and bits != 3:  # the constant is added to whole words
        one = int("".join(["1".zfill(bits)] * (32 // bits)), 2)
        zeros = torch.from_numpy((zeros.numpy().view(np.uint32) + np.uint32(one)).view(np.int32))
        z = fields(zeros, 1)
    else:
        z = (fields(zeros, 1) + v1) % 8 if bits == 3 else fields(zeros, 1)
    g = layer["g_idx"].numpy() if "g_idx" in layer else np.arange(layer["qweight"].shape[0] * 32 // bits) // config["group_size"]
    q = fields(layer["qweight"], 0)
    return ((q - z[g]).astype(np.float32) * scales[g]).T


def read_layer(layer, config):
    """the weight of a layer, whose tensors have their names after the layer's"""
    method = (config or {}).get("quant_method")
    if method == "gptq":
        return gptq(layer, config)
    if method == "awq":
        prefixed = {"a.b." + k: v for k, v in layer.items()}
        out = AutoAWQConverter.from_autoawq_config(config).process(prefixed)
        args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=config["group_size"], symmetric="a.b.weight_zero_point" not in out)
        return decompress({k[4:]: v for k, v in out.items()}, QuantizationScheme(targets=["Linear"], weights=args), "pack-quantized")
    if method == "bitsandbytes" and config.get("load_in_4bit"):
        state = {k[7:]: v for k, v in layer.items() if k.startswith("weight.")}
        quant_state = bnb.QuantState.from_dict(state, torch.device("cpu"))
        quant_state.dtype = torch.float32
        return bnb.dequantize_4bit(layer["weight"], quant_state)
    if method == "compressed-tensors":
        return decompress(layer, *ct_scheme(config))
    if method == "modelopt":  # the converter would round 1 / weight_scale_2: its table and order of codes, ModelOpt's product
        rows, half = layer["weight"].shape
        codes = unpack_fp4_from_uint8(layer["weight"], rows, 2 * half, dtype=torch.float32)
        return codes * (layer["weight_scale"].float() * layer["weight_scale_2"]).repeat_interleave(16, 1)
    if method == "fp8" and "weight_scale_inv" in layer:
        out = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=tuple(config["weight_block_size"])).process({"a.b." + k: v for k, v in layer.items()})
        return out["a.b.weight"]
    if method == "fp8":
        scale = layer["weight_scale"].float()
        return layer["weight"].float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
    raise ValueError(f"no reader of {method}")


def compare_checkpoint(path, dump):
    name = path.name
    if (dump / "refused.txt").exists():
        return check(name, False, (dump / "refused.txt").read_text())
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    layers = json.loads((dump / "layers.json").read_text())
    check(f"{name} layers", len(layers) > 0, "none")
    for entry in layers:
        ours = np.fromfile(dump / entry["f32"], np.float32)
        try:
            if config["quant_method"] == "mxfp4":
                base, expert = entry["name"][:-1].split("[")
                exact = convert_moe_packed_tensors(tensors[base + "_blocks"], tensors[base + "_scales"], dtype=torch.float32)
                theirs = exact[int(expert)].T
            else:
                theirs = read_layer({k[len(entry["name"]) + 1:]: v for k, v in tensors.items() if k.startswith(entry["name"] + ".")}, config)
            compare(f"{name} {entry['name']}", ours, theirs)
        except Exception as e:
            check(f"{name} {entry['name']}", False, f"{type(e).__name__}: {e}")


def write_checkpoint(folder, tensors, config):
    folder.mkdir()
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "interop", "quantization_config": config}))


def write_checkpoints(root):
    w = torch.from_numpy(weights(128, 256, 4))
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for block in (64, 128, 4096):
                packed, state = bnb.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
                tensors = {"a.b.weight": packed} | {"a.b.weight." + k: v for k, v in state.as_dict(packed=True).items()}
                write_checkpoint(root / f"package_bnb_{kind}_{'double_' if nested else ''}{block}", tensors,
                                 {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind})
    schemes = []
    for bits in range(2, 9):
        for symmetric in (True, False):
            schemes.append((f"int{bits}_{'sym' if symmetric else 'zero'}_g64", "pack-quantized",
                            dict(num_bits=bits, type="int", strategy="group", group_size=64, symmetric=symmetric)))
    schemes += [
        ("int8_channel", "int-quantized", dict(num_bits=8, type="int", strategy="channel", symmetric=True)),
        ("int4_channel", "pack-quantized", dict(num_bits=4, type="int", strategy="channel", symmetric=False)),
        ("fp8_tensor", "float-quantized", dict(num_bits=8, type="float", strategy="tensor", symmetric=True)),
        ("fp8_channel", "float-quantized", dict(num_bits=8, type="float", strategy="channel", symmetric=True)),
        ("fp8_block", "float-quantized", dict(num_bits=8, type="float", strategy="block", block_structure=[128, 128], symmetric=True)),
        ("nvfp4", "nvfp4-pack-quantized", dict(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)),
        ("mxfp4", "mxfp4-pack-quantized", dict(num_bits=4, type="float", strategy="group", group_size=32, symmetric=True, scale_dtype=torch.uint8)),
    ]
    from compressed_tensors.quantization.utils import calculate_qparams

    for name, form, fields in schemes:
        args = QuantizationArgs(**fields)
        if args.strategy == "tensor":
            parts = w.reshape(1, 1, -1)
        elif args.strategy == "block":
            r, c = args.block_structure
            parts = w.reshape(w.shape[0] // r, r, w.shape[1] // c, c).permute(0, 2, 1, 3).flatten(2)
        else:
            parts = w.reshape(w.shape[0], -1, args.group_size or w.shape[1])
        low, high = parts.amin(-1), parts.amax(-1)
        state = {"weight": w}
        if form.startswith("nvfp4"):
            state["weight_global_scale"] = (448 * 6 / w.abs().max()).reshape(1).float()
        scale, zero = calculate_qparams(low, high, args, **({"global_scale": state["weight_global_scale"]} if form.startswith("nvfp4") else {}))
        state["weight_scale"] = scale.reshape(-1) if args.strategy == "tensor" else scale
        if not args.symmetric:
            state["weight_zero_point"] = zero.to(torch.int8)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        out = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
        config = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": [],
                  "config_groups": {"group_0": {"targets": ["Linear"], "format": form, "weights": json.loads(args.model_dump_json())}}}
        write_checkpoint(root / f"package_ct_{name}", {"a.b." + k: v for k, v in out.items()}, config)


if __name__ == "__main__":
    verb, root = sys.argv[1], pathlib.Path(sys.argv[2])
    from importlib.metadata import version

    gguf_version = version("gguf")
    if verb == "write":
        write_gguf(root / "gguf")
        write_safetensors(root / "safetensors")
        write_checkpoints(root / "checkpoints")
    else:
        for kind, one in (("gguf", compare_gguf), ("safetensors", compare_safetensors), ("checkpoints", compare_checkpoint)):
            for path in sorted((root / kind).iterdir()):
                if path.suffix != ".dump":
                    one(path, path.with_name(path.name + ".dump"))
        used = ", ".join(f"{p} {version(p)}" for p in ("gguf", "safetensors", "compressed-tensors", "bitsandbytes", "transformers", "torch", "numpy"))
        print(f"{used}\n{agreed} agree, {failures} do not")
        sys.exit(failures != 0)
