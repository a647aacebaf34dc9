# Every target makes what it needs. `make demo` is the product in one command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := examples/fashion_dit/model
OUT ?= out
PROMPTS := --prompts examples/fashion_dit/prompts.jsonl
FLUX := examples/fashion_flux/model --prompts examples/fashion_flux/prompts.jsonl
EMOJI := examples/emoji_qwen/model --prompts examples/emoji_qwen/prompts.jsonl
EFFORT ?= --budget 100 --heldout 32 --batch 40
FULL := --budget 1000 --heldout 64
USUAL := --budget 100 --heldout 32 --batch 8
CLIPS := examples/moving_wan/model --prompts examples/moving_wan/prompts.jsonl
COST_DIT := $(MODEL) $(PROMPTS) --guidance-scale 1.5 --policy examples/fashion_dit/fashion.policy.safetensors
COST_FLUX := $(FLUX) --policy examples/fashion_flux/fashion-flux.policy.safetensors
NEVER_SEEN := --seed 555000000 --batch 40
RACE := --samples 32 --screen 8 --batch 8 --repeats 5
MEASURE ?= --samples 32 --repeats 1
JOBS ?= 2

.PHONY: install demo test check slow gpu bench reports peers cost clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,export,bench,tensorrt-rtx]'
	touch $@

demo: install                      ## calibrate the demo model, then compare on seeds it never saw
	mkdir -p $(OUT)
	$(BIN)/cachesmith calibrate $(MODEL) $(PROMPTS) --guidance-scale 1.5 $(EFFORT) \
	  --out $(OUT)/fashion.policy.safetensors --report $(OUT)/report --force
	$(BIN)/cachesmith bench $(MODEL) $(PROMPTS) --policy $(OUT)/fashion.policy.safetensors \
	  --against fora:interval=5 --against taylorseer:interval=6,order=2 $(MEASURE) \
	  --markdown $(OUT)/bench.md --sheet $(OUT)/sheet.png --force

test: install                      ## the fast tests
	$(BIN)/pytest -n $(JOBS)

check: install                     ## what CI runs: style, types, layers, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(JOBS)

slow: install                      ## the slow tests: of a network that diffusers does not know, and of quantised weights, too
	-$(BIN)/pip install --quiet --no-deps visage-image
	-$(BIN)/pip install --quiet --no-deps --constraint constraints.txt torchao
	$(BIN)/pytest -m slow

gpu: install                       ## needs an NVIDIA GPU: tables of forecasts, loops and engines
	-$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[tensorrt]'
	$(BIN)/python benchmarks/gpu.py --model flux --out benchmarks/gpu-flux.md
	$(BIN)/python benchmarks/gpu.py --model dit --out benchmarks/gpu-dit.md
	$(BIN)/python benchmarks/gpu_engines.py --out benchmarks/gpu_engines.md

bench: install                     ## carry on the committed policies, and front.py (about two hours on 2 cores)
	$(BIN)/cachesmith calibrate $(MODEL) $(PROMPTS) --guidance-scale 1.5 $(FULL) \
	  --speedup 3.5 --speedup 5 --speedup 7 --speedup 8.33 --speedup 6.25 --speedup 5.55 --speedup 3.84 --speedup 3.7 \
	  --from examples/fashion_dit/fashion.policy.safetensors \
	  --out examples/fashion_dit/fashion.policy.safetensors --force
	$(BIN)/cachesmith calibrate $(FLUX) $(FULL) --speedup 3.5 --speedup 5 --speedup 7 --speedup 10 --speedup 8.33 --speedup 6.25 \
	  --from examples/fashion_flux/fashion-flux.policy.safetensors \
	  --out examples/fashion_flux/fashion-flux.policy.safetensors --force
	$(BIN)/python benchmarks/front.py --policy examples/fashion_dit/fashion.policy.safetensors \
	  --out benchmarks/fashion_dit

reports: install                   ## what a calibration of the usual cost writes, in place of the committed reports
	mkdir -p $(OUT)
	OMP_NUM_THREADS=1 $(BIN)/cachesmith calibrate $(FLUX) $(USUAL) --force \
	  --out $(OUT)/fashion-flux.policy.safetensors --report benchmarks/fashion_flux/report
	OMP_NUM_THREADS=1 $(BIN)/cachesmith calibrate $(MODEL) $(PROMPTS) --guidance-scale 1.5 $(USUAL) --force \
	  --out $(OUT)/fashion.policy.safetensors --report benchmarks/fashion_dit/report

peers: install                     ## all known caches side by side: the README's tables (hours; an interrupted run goes on)
	$(BIN)/python benchmarks/fetch_lpips.py $(VENV)/lpips-vgg.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py $(MODEL) $(PROMPTS) --guidance-scale 1.5 $(RACE) \
	  --lpips $(VENV)/lpips-vgg.safetensors \
	  --policy examples/fashion_dit/fashion.policy.safetensors --out benchmarks/fashion_dit
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py $(FLUX) $(RACE) --lpips $(VENV)/lpips-vgg.safetensors \
	  --policy examples/fashion_flux/fashion-flux.policy.safetensors --out benchmarks/fashion_flux
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py $(EMOJI) $(RACE) --lpips $(VENV)/lpips-vgg.safetensors \
	  --policy examples/emoji_qwen/emoji.policy.safetensors --out $(OUT)/emoji_qwen
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py $(CLIPS) --samples 32 --screen 8 --batch 8 --repeats 3 \
	  --policy examples/moving_wan/moving.policy.safetensors --out benchmarks/moving_wan

cost: install                      ## quality against run equivalents: the rows that benchmarks/cost.md lacks (hours)
	for speedup in 6.25 5 3.57; do \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cost.py $(COST_FLUX) $(NEVER_SEEN) --speedup $$speedup \
	    --budget 50 --budget 100 --budget 300 --work $(OUT)/cost-flux-$$speedup || exit 1; \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cost.py $(COST_DIT) $(NEVER_SEEN) --speedup $$speedup \
	    --budget 50 --budget 100 --budget 300 --work $(OUT)/cost-dit-$$speedup || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cost.py $(COST_FLUX) $(NEVER_SEEN) --budget 180 \
	  --speedup 6.25 --speedup 5 --speedup 3.57 --work $(OUT)/cost-flux
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cost.py $(COST_DIT) $(NEVER_SEEN) --budget 180 \
	  --speedup 6.25 --speedup 5 --speedup 3.57 --work $(OUT)/cost-dit

clean:
	rm -rf $(VENV) $(OUT) build dist
