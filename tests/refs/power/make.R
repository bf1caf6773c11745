# Power by simulation for two examples, beside it as references.json: Rscript make.R, from this folder.
#
# What simr's powerSim(fixed("x", "t")) and fixed("x", "z") do, step by step, with lme4 and lmerTest themselves: responses are
# simulated from the fit with another coefficient, the model is fitted to each, and the p-values below 0.05 are counted;
# extend(along = , n = ) repeats the rows of the levels that there are.
suppressMessages({library(jsonlite); library(lme4); library(lmerTest)})
read <- function(path) read.csv(gzfile(paste0("../", path, ".csv.gz")))
SIMULATIONS <- 1000

more_levels <- function(d, factor, n) {
  levels <- unique(d[[factor]])
  parts <- lapply(seq_len(n), function(k) {
    part <- d[d[[factor]] == levels[(k - 1) %% length(levels) + 1], ]
    part[[factor]] <- k
    part
  })
  do.call(rbind, parts)
}

count <- function(p) list(found = sum(p < 0.05), simulations = length(p))

sleep <- read("data/sleepstudy")
m <- lme4::lmer(Reaction ~ Days + (Days | Subject), sleep)
out <- list(sleepstudy = list())
for (subjects in c(10, 18, 30)) {
  d <- more_levels(sleep, "Subject", subjects)
  set.seed(subjects)
  responses <- simulate(formula(m)[-2], newdata = d, family = gaussian, nsim = SIMULATIONS,
                        newparams = list(beta = c(fixef(m)[[1]], 4), theta = getME(m, "theta"), sigma = sigma(m)))
  p <- sapply(responses, function(y) {
    d$Reaction <- y
    fit <- suppressWarnings(suppressMessages(lmerTest::lmer(Reaction ~ Days + (Days | Subject), d)))
    coef(summary(fit))["Days", "Pr(>|t|)"]
  })
  out$sleepstudy[[as.character(subjects)]] <- count(p)
}

cows <- read("generalized/data/cbpp")
m <- glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), cows, binomial)
beta <- fixef(m)
beta["periodp4"] <- -0.8
out$cbpp <- list()
for (herds in c(15, 40)) {
  d <- more_levels(cows, "herd", herds)
  set.seed(herds)
  responses <- simulate(formula(m)[-2], newdata = d, family = binomial, weights = d$size, nsim = SIMULATIONS,
                        newparams = list(beta = beta, theta = getME(m, "theta")))
  p <- sapply(responses, function(y) {
    d$incidence <- if (is.matrix(y)) y[, 1] else if (max(y) <= 1) round(y * d$size) else y
    fit <- suppressWarnings(suppressMessages(glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), d, binomial)))
    coef(summary(fit))["periodp4", "Pr(>|z|)"]
  })
  out$cbpp[[as.character(herds)]] <- count(p)
}
write(toJSON(out, digits = 12, auto_unbox = TRUE, pretty = 1), "references.json")
