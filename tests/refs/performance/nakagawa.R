# R2 of counts by the formulas of Nakagawa, Johnson and Schielzeth (2017): the variance of an observation at the mean of a model
# without predictors, lambda = exp(intercept + variance / 2). insight 0.19 takes exp(intercept) there; of successes, where no
# mean is needed, what performance says. Rscript nakagawa.R, from this folder.
suppressMessages({library(jsonlite); library(glmmTMB); library(performance)})
source("../fit.R")

# The mean over the rows of the variance that the random effects give, without levels of the residuals.
random <- function(m, d) {
  total <- 0
  for (bar in lme4::findbars(formula(m))) {
    Z <- model.matrix(as.formula(paste("~", deparse(bar[[2]]))), d)
    S <- VarCorr(m)$cond[[deparse(bar[[3]])]]
    total <- total + mean(rowSums((Z %*% S[seq_len(ncol(Z)), seq_len(ncol(Z)), drop = FALSE]) * Z))
  }
  total
}

cases <- list(
  poisson = list(r = "TICKS ~ YEAR * cHEIGHT + (1 | BROOD)", family = "poisson"),
  nbinom2 = list(r = "TICKS ~ YEAR * cHEIGHT + (1 | BROOD)", family = "nbinom2"),
  nbinom1 = list(r = "TICKS ~ YEAR * cHEIGHT + (1 | BROOD)", family = "nbinom1"),
  slopes = list(r = "TICKS ~ YEAR + cHEIGHT + (cHEIGHT | LOCATION)", family = "nbinom2"))
d <- droplevels(na.omit(read("grouseticks")))
out <- list()
for (name in names(cases)) {
  case <- cases[[name]]
  m <- fit(c(case, list(data = "grouseticks")), d)
  empty <- reformulate(paste0("(", sapply(lme4::findbars(as.formula(case$r)), deparse), ")"), "TICKS")
  null <- fit(list(r = paste(deparse(empty), collapse = ""), family = case$family), d)
  fixed <- var(as.vector(model.matrix(m) %*% fixef(m)$cond))
  lambda <- unname(exp(fixef(null)$cond[1] + random(null, d) / 2))
  # The variance over the squared mean, with the dispersion of the full model.
  size <- sigma(m)
  share <- switch(case$family, poisson = 1 / lambda, nbinom2 = 1 / lambda + 1 / size, nbinom1 = (1 + size) / lambda)
  residual <- list(lognormal = log1p(share), delta = share, trigamma = trigamma(1 / share))
  total <- fixed + random(m, d)
  out[[name]] <- list(r = case$r, family = case$family, fixed = fixed, random = random(m, d), lambda = lambda, residual = residual,
                      conditional = lapply(residual, function(v) total / (total + v)))
}
d$any <- as.integer(d$TICKS > 0)
for (link in c("logit", "probit", "cloglog")) {
  m <- glmmTMB(any ~ YEAR + cHEIGHT + (cHEIGHT | LOCATION), d, binomial(link),
               control = glmmTMBControl(optCtrl = list(iter.max = 1e4, eval.max = 1e4, rel.tol = 1e-15, x.tol = 1e-13)))
  r2 <- r2_nakagawa(m)
  intraclass <- icc(m)
  out[[link]] <- list(objective = -2 * as.numeric(logLik(m)), marginal = unname(r2$R2_marginal), conditional = unname(r2$R2_conditional),
                      icc = intraclass$ICC_adjusted, icc_unadjusted = intraclass$ICC_unadjusted)
}
write(toJSON(out, digits = 12, auto_unbox = TRUE, pretty = 1), "nakagawa.json")
