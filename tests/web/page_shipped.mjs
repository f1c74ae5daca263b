/**
 * What one host with the shipped weights and one page serve, one after the other: python3 run.py test --only page
 */
import "./page_menu.mjs";
import "./page_calibrate.mjs"; // it loads the page anew
