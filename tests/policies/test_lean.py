import subprocess
import sys

HEAVY = ("torch", "diffusers", "transformers", "optuna", "sklearn", "onnx", "onnxruntime", "tensorrt")


def test_importing_policies_stays_light() -> None:
    code = f"import sys, cachesmith.policies; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
