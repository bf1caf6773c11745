# Estimated marginal means of emmeans for cases.json, beside it as references.json: Rscript make.R, from this folder.
#
# Linear models are fitted by lme4 (lmerTest and pbkrtest give degrees of freedom), others by glmmTMB, whose standard
# errors are of the kind that jmixed has. Optimisers run at far tighter tolerance than their default.
suppressMessages({library(jsonlite); library(lme4); library(lmerTest); library(glmmTMB); library(emmeans)})
emm_options(pbkrtest.limit = 5000, lmerTest.limit = 5000, msg.interaction = FALSE, msg.nesting = FALSE)

source("../fit.R")

methods <- c(pairwise = "pairwise", revpairwise = "revpairwise", reference = "trt.vs.ctrl", consecutive = "consec",
             poly = "poly", effects = "eff")

table_of <- function(x) {
  x <- as.data.frame(x)
  as.list(lapply(x, function(column) I(if (is.numeric(column)) unname(column) else as.character(column))))
}

compare <- function(e, asked, kind) {
  method <- unlist(asked$method)
  e <- if (length(method) > 1) contrast(e, interaction = unname(methods[method]), by = NULL) else contrast(e, unname(methods[method]))
  set.seed(1)
  table_of(summary(e, infer = c(TRUE, TRUE), adjust = asked$adjust, type = if (kind == "response") "response" else "link"))
}

answer <- function(m, d, call) {
  mode <- if (call$ddf == "none") "asymptotic" else call$ddf
  at <- lapply(call$at, unlist)
  specs <- unlist(call$specs); by <- unlist(call$by)
  arguments <- list(object = m, weights = call$weights)
  # This version of emmeans gives glmmTMB's fits the degrees of freedom of residuals.
  if (inherits(m, "glmmTMB")) arguments$df <- Inf
  if (length(at)) arguments$at <- at
  if (inherits(m, "lmerMod")) arguments$lmer.df <- mode
  if (call$call == "slopes") {
    arguments$var <- specs
    arguments$specs <- if (length(by)) reformulate(by) else ~ 1
    arguments$weights <- NULL
    e <- do.call(emtrends, arguments)
  } else {
    arguments$specs <- specs
    if (length(by)) arguments$by <- by
    e <- do.call(emmeans, arguments)
  }
  told <- list(object = e, infer = c(TRUE, FALSE), type = if (call$kind == "response") "response" else "link")
  if (!is.null(call$sigma)) told <- c(told, bias.adjust = TRUE, sigma = call$sigma)
  list(frame = table_of(do.call(summary, told)),
       contrasts = lapply(call$contrasts, function(asked) compare(e, asked, call$kind)))
}

cases <- fromJSON("cases.json", simplifyVector = FALSE)
out <- list()
for (name in names(cases)) {
  case <- cases[[name]]
  d <- read(case$data)
  if (length(case$drop)) {
    gone <- Reduce(`&`, lapply(names(case$drop), function(column) d[[column]] %in% unlist(case$drop[[column]])))
    d <- droplevels(d[!gone, ])
  }
  d <- droplevels(na.omit(d[, unique(c(all.vars(as.formula(case$r)), case$weights))]))
  m <- suppressMessages(suppressWarnings(fit(case, d)))
  cat(name, "\n")
  out[[name]] <- list(log_likelihood = as.numeric(logLik(m)),
                      calls = lapply(case$calls, function(call) suppressMessages(answer(m, d, call))))
}
write(toJSON(out, digits = 15, auto_unbox = TRUE, na = "null", pretty = 1), "references.json")
